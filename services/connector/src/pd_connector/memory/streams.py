"""An NVIDIA GPU as a transport uses it that launches work of its own there: streams and events, by the driver.

They are not torch's, whose streams are few and are given out again and again: work that waits for a peer must not be in the stream of
other work.
"""

import ctypes
from typing import Any, Final

from pd_connector.memory.cumem import CudaError, Driver
from pd_connector.memory.pages import Copier

SCRATCH_BYTES: Final = 4096
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream
_PRIORITY: Final = -1  # before the model's kernels on a busy GPU
_NO_TIMING: Final = 2  # CU_EVENT_DISABLE_TIMING
_NOT_READY: Final = 600  # CUDA_ERROR_NOT_READY


class DriverStream:
    """A stream with one event."""

    def __init__(self, driver: Driver) -> None:
        """Raises CudaError if the GPU has no memory for it."""
        self._driver = driver
        stream, event = ctypes.c_void_p(), ctypes.c_void_p()
        driver.call(
            "cuStreamCreateWithPriority", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING), ctypes.c_int(_PRIORITY)
        )
        driver.call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(_NO_TIMING))
        self.handle = int(stream.value or 0)
        self._event = event

    def mark(self) -> None:
        """Remember what is in the stream now."""
        self._driver.call("cuEventRecord", self._event, ctypes.c_void_p(self.handle))

    def is_over(self) -> bool:
        """Whether everything before the mark is complete."""
        try:
            self._driver.call("cuEventQuery", self._event)
        except CudaError as error:
            if error.code == _NOT_READY:
                return False
            raise
        return True

    def close(self) -> None:
        """Release both."""
        self._driver.call("cuEventDestroy_v2", self._event)
        self._driver.call("cuStreamDestroy_v2", ctypes.c_void_p(self.handle))


class NvidiaGpu:
    """The GPU of an engine's KV cache."""

    def __init__(self, driver: Driver, copier: Copier, index: int, scratch: Any) -> None:
        """`scratch` is a tensor of `SCRATCH_BYTES`."""
        self._driver = driver
        self._copier = copier
        self._tensor = scratch
        self.scratch = int(scratch.data_ptr())
        device, name = ctypes.c_int(), ctypes.create_string_buffer(16)
        driver.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        driver.call("cuDeviceGetUuid", name, device)
        self.identity = name.raw.hex()

    def enter_thread(self) -> None:
        """Make this GPU the current device of the calling thread."""
        self._copier.enter_thread()

    def stream(self) -> DriverStream:
        """A new stream."""
        return DriverStream(self._driver)

    def wait(self, mark: Any) -> None:
        """Sleep until a copier's mark has passed."""
        self._copier.wait(mark)
