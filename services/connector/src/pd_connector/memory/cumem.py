"""CUDA's virtual memory management, by ctypes on the driver: memory that another process can map by a file descriptor.

Every vLLM image with a GPU has the driver library; Python bindings differ between torch's versions.
"""

import ctypes
from typing import Any, Final

from pd_connector.memory.pages import DEVICE

_PINNED: Final = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
_ON_DEVICE: Final = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_FILE_DESCRIPTOR: Final = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_READ_WRITE: Final = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_OUT_OF_MEMORY: Final = 2  # CUDA_ERROR_OUT_OF_MEMORY
_INVALID_DEVICE: Final = 101  # CUDA_ERROR_INVALID_DEVICE
# Seen between two processes that had the device file of one GPU each; with all files and CUDA_VISIBLE_DEVICES it works.
_UNSEEN: Final = ": this engine cannot see the GPU of decode's engine. Give both containers all GPUs of the node, and choose with CUDA_VISIBLE_DEVICES"


class CudaError(RuntimeError):
    """A driver call failed; the message names the call and the error."""

    def __init__(self, call: str, code: int, name: str) -> None:
        unseen = code == _INVALID_DEVICE and call == "cuMemImportFromShareableHandle"
        super().__init__(f"{call}: {name}" + (_UNSEEN if unseen else ""))
        self.code = code

    @property
    def out_of_memory(self) -> bool:
        """Whether the GPU had no memory left."""
        return self.code == _OUT_OF_MEMORY


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class Driver:
    """The driver's calls that are used here. The calling thread must have a context (torch makes one)."""

    def __init__(self) -> None:
        """Load the driver library.

        Raises:
            OSError: if there is no driver.
        """
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.cuGetErrorName.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            CudaError: if it fails.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            raise CudaError(name, code, (text.value or b"unknown").decode())

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy bytes between any two addresses, in a stream's order."""
        self.call(
            "cuMemcpyAsync",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def fill_zero(self, target: int, size: int) -> None:
        """Overwrite memory with zeros, and wait for it."""
        self.call("cuMemsetD8_v2", ctypes.c_uint64(target), ctypes.c_ubyte(0), ctypes.c_size_t(size))
        self.call("cuCtxSynchronize")

    def read(self, source: int, size: int) -> bytes:
        found = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", found, ctypes.c_uint64(source), ctypes.c_size_t(size))
        return found.raw


class Mapping:
    """A range of GPU memory mapped in this process: its own, or another process's."""

    def __init__(self, driver: Driver, device: int, handle: int, size: int) -> None:
        """Map `handle`, which this takes over."""
        self._driver = driver
        self._handle = ctypes.c_uint64(handle)
        self.size = size
        pointer = ctypes.c_uint64()
        amount, nothing = ctypes.c_size_t(size), ctypes.c_uint64(0)
        try:
            driver.call("cuMemAddressReserve", ctypes.byref(pointer), amount, ctypes.c_size_t(0), nothing, nothing)
            self.address = int(pointer.value)
            driver.call("cuMemMap", pointer, amount, ctypes.c_size_t(0), self._handle, nothing)
            access = _Access(_Location(_ON_DEVICE, device), _READ_WRITE)
            driver.call("cuMemSetAccess", pointer, amount, ctypes.byref(access), ctypes.c_size_t(1))
        except CudaError:
            driver.call("cuMemRelease", self._handle)
            raise

    @classmethod
    def create(cls, driver: Driver, device: int, size: int) -> "Mapping":
        """Allocate memory of this process; the size is rounded up.

        Raises:
            CudaError: if the GPU does not have enough memory, or cannot share it.
        """
        properties = _Properties(_PINNED, _FILE_DESCRIPTOR, _Location(_ON_DEVICE, device), None, _Flags())
        step = ctypes.c_size_t()
        driver.call("cuMemGetAllocationGranularity", ctypes.byref(step), ctypes.byref(properties), ctypes.c_int(0))
        whole = -(-size // step.value) * step.value
        handle = ctypes.c_uint64()
        driver.call(
            "cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(whole), ctypes.byref(properties), ctypes.c_uint64(0)
        )
        return cls(driver, device, handle.value, whole)

    @classmethod
    def imported(cls, driver: Driver, device: int, descriptor: int, size: int) -> "Mapping":
        """Map memory of another process by its descriptor; it may be on another GPU of this node.

        Raises:
            CudaError: if this GPU cannot reach it.
        """
        handle = ctypes.c_uint64()
        driver.call(
            "cuMemImportFromShareableHandle",
            ctypes.byref(handle),
            ctypes.c_void_p(descriptor),
            ctypes.c_int(_FILE_DESCRIPTOR),
        )
        return cls(driver, device, handle.value, size)

    def export(self) -> int:
        """A new file descriptor, with which another process can map this memory."""
        descriptor = ctypes.c_int(-1)
        self._driver.call(
            "cuMemExportToShareableHandle",
            ctypes.byref(descriptor),
            self._handle,
            ctypes.c_int(_FILE_DESCRIPTOR),
            ctypes.c_uint64(0),
        )
        return int(descriptor.value)

    def close(self) -> None:
        """Unmap and release it; another process that has mapped it keeps it."""
        pointer, size = ctypes.c_uint64(self.address), ctypes.c_size_t(self.size)
        self._driver.call("cuMemUnmap", pointer, size)
        self._driver.call("cuMemAddressFree", pointer, size)
        self._driver.call("cuMemRelease", self._handle)


class DeviceMemory:
    """Pages of a GPU's memory."""

    kind = DEVICE

    def __init__(self, driver: Driver, device: int, pages: int, page_bytes: int) -> None:
        self.pages = pages
        self.page_bytes = page_bytes
        self.mapping = Mapping.create(driver, device, pages * page_bytes)
        self._driver = driver

    def address(self, page: int) -> int:
        return self.mapping.address + page * self.page_bytes

    def zero(self, page: int) -> None:
        """Overwrite a page with zeros."""
        self._driver.fill_zero(self.address(page), self.page_bytes)

    def read(self, page: int, size: int) -> bytes:
        return self._driver.read(self.address(page), size)
