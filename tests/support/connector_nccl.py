"""NCCL without GPUs, for tests of pd_connector's transport: a library with NCCL's calls (fake_nccl.c), and a GPU whose streams it runs."""

import atexit
import ctypes
import functools
import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pd_connector.memory.streams import SCRATCH_BYTES
from pd_connector.net.libnccl import Nccl, NcclError
from pd_connector.net.nccl import NcclTransport
from pd_connector.settings import Settings

__all__ = ["FakeNccl", "Nccl", "NcclError"]
# Of fake_nccl.c.
NONE, NEVER_JOINS, ERROR_AT_JOIN, ERROR_LATER, NEVER_MOVES, SLOW, LATE = range(7)
SENDER, RECEIVER = 0, 1
VERSION: Final = 22809
_numbers = itertools.count(1)
_this_thread = threading.local()


def enter_thread() -> None:
    """From now on this thread may use a GPU."""
    _this_thread.entered = True


@functools.cache
def library(version: int = VERSION) -> Path:
    """The compiled library; skips where there is no C compiler."""
    from support.monitor import build_library  # noqa: PLC0415  an engine in a process of its own starts faster without

    folder = Path(tempfile.mkdtemp(prefix="pd-fake-nccl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build_library(folder, "fake_nccl.c", "libnccl.so.2", [f"-DVERSION={version}", "-pthread"])


class FakeStream:
    """A stream of the library's operations."""

    def __init__(self, calls: Any, check: Callable[[], None]) -> None:
        self.handle = next(_numbers)
        self._calls = calls
        self._check = check
        self._mark = 0
        check()

    def mark(self) -> None:
        self._check()
        self._mark = self._calls.fake_nccl_begun(self.handle)

    def is_over(self) -> bool:
        return bool(self._calls.fake_nccl_is_over(self.handle, ctypes.c_long(self._mark)))

    def close(self) -> None: ...


class FakeGpu:
    """A GPU with a name. `strays` gets the names of threads that used it without having entered it, which CUDA refuses."""

    def __init__(self, calls: Any, identity: str, strays: list[str]) -> None:
        self.identity = identity
        self._calls = calls
        self._strays = strays
        self._memory = ctypes.create_string_buffer(SCRATCH_BYTES)
        self.scratch = ctypes.addressof(self._memory)

    def enter_thread(self) -> None:
        enter_thread()

    def stream(self) -> FakeStream:
        return FakeStream(self._calls, self._check)

    def _check(self) -> None:
        if not hasattr(_this_thread, "entered"):
            self._strays.append(threading.current_thread().name)

    def wait(self, mark: Any) -> None: ...


class FakeNccl:
    """The library, and what a test asks it to do wrong."""

    def __init__(self, path: Path | None = None, version: int = VERSION) -> None:
        self.path = path or library(version)
        self.nccl = Nccl(str(self.path))
        self.calls: Any = ctypes.CDLL(str(self.path))
        self.strays: list[str] = []

    def fault(self, rank: int, fault: int) -> None:
        """From now on this rank of every communicator of this process has this fault."""
        self.calls.fake_nccl_fault(rank, fault)

    @property
    def alive(self) -> int:
        """Communicators that were begun and not aborted."""
        return int(self.calls.fake_nccl_alive())

    @property
    def aborted(self) -> int:
        return int(self.calls.fake_nccl_aborted())

    def transport(self, boot: str, address: str, settings: Settings, gpu: str = "") -> NcclTransport:
        """The connector's transport over this library; each has a GPU of its own unless it is named."""
        return NcclTransport(
            boot, address, self.nccl, FakeGpu(self.calls, gpu or f"gpu-{next(_numbers)}-{boot}", self.strays), settings
        )
