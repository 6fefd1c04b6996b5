"""NCCL by ctypes: the few calls with which two ranks send bytes. The library is the one that torch brings.

NCCL's header is versioned, so that a program made for an older one works with a newer library: the configuration says its own size and version,
and its fields here are those of 2.17.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any, Final

SUCCESS: Final = 0  # ncclSuccess
IN_PROGRESS: Final = 7  # ncclInProgress
ID_BYTES: Final = 128  # NCCL_UNIQUE_ID_BYTES
OLDEST: Final = 21700
_MAGIC: Final = 0xCAFEBEEF
_UNDEFINED: Final = -(2**31)  # NCCL_CONFIG_UNDEF_INT
_BYTES: Final = 1  # ncclUint8


class NcclError(RuntimeError):
    """NCCL cannot be used, or a call failed; the message names the call."""


class UniqueId(ctypes.Structure):
    """`ncclUniqueId`, which calls take by value."""

    _fields_ = (("internal", ctypes.c_char * ID_BYTES),)


class Config(ctypes.Structure):
    """`ncclConfig_t` of 2.17."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cga_cluster_size", ctypes.c_int),
        ("min_ctas", ctypes.c_int),
        ("max_ctas", ctypes.c_int),
        ("net_name", ctypes.c_char_p),
    )


_ARGUMENTS: Final[dict[str, list[Any]]] = {
    "ncclGetVersion": [ctypes.POINTER(ctypes.c_int)],
    "ncclGetUniqueId": [ctypes.POINTER(UniqueId)],
    "ncclCommInitRankConfig": [
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int,
        UniqueId,
        ctypes.c_int,
        ctypes.POINTER(Config),
    ],
    "ncclCommGetAsyncError": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)],
    "ncclCommAbort": [ctypes.c_void_p],
    "ncclGroupStart": [],
    "ncclGroupEnd": [],
    "ncclSend": [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ],
    "ncclRecv": [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ],
    "ncclGetErrorString": [ctypes.c_int],
    "ncclGetLastError": [ctypes.c_void_p],
}


class Nccl:
    """The library. Communicators are non-blocking: a call may go on after it returned, and `state` tells when it is over."""

    def __init__(self, path: str = "") -> None:
        """Load the library: the one at `path`, or else the one that vLLM would take.

        Raises:
            NcclError: if there is none, or it is too old.
        """
        # torch has loaded its own, so the loader finds that one by its name.
        name = path or os.environ.get("VLLM_NCCL_SO_PATH") or "libnccl.so.2"
        try:
            self._library = ctypes.CDLL(name)
            for call, arguments in _ARGUMENTS.items():
                getattr(self._library, call).argtypes = arguments
        except (OSError, AttributeError) as error:
            msg = f"NCCL cannot be loaded: {error}"
            raise NcclError(msg) from error
        for text in ("ncclGetErrorString", "ncclGetLastError"):
            getattr(self._library, text).restype = ctypes.c_char_p
        found = ctypes.c_int()
        self._call("ncclGetVersion", ctypes.byref(found))
        self.version = found.value
        if self.version < OLDEST:
            msg = f"NCCL {readable(self.version)} is too old: 2.17 or later is needed"
            raise NcclError(msg)

    def unique_id(self) -> bytes:
        """A new id for one communicator. From now on a thread of NCCL waits for its ranks."""
        found = UniqueId()
        self._call("ncclGetUniqueId", ctypes.byref(found))
        return bytes(memoryview(found))

    def begin(self, identity: bytes, rank: int, blocks: int) -> int:
        """Begin to set up a communicator of two ranks; returns its handle. A transfer may take so many thread blocks."""
        handle = ctypes.c_void_p()
        config = Config(ctypes.sizeof(Config), _MAGIC, OLDEST, 0, _UNDEFINED, _UNDEFINED, max(1, blocks), None)
        code = self._library.ncclCommInitRankConfig(
            ctypes.byref(handle), 2, UniqueId.from_buffer_copy(identity), rank, ctypes.byref(config)
        )
        if code not in (SUCCESS, IN_PROGRESS):
            if handle.value:
                self.abort(handle.value)
            raise self._error("ncclCommInitRankConfig", code)
        return int(handle.value or 0)

    def is_busy(self, communicator: int) -> bool:
        """Whether the last call still goes on; only then another one may follow.

        Raises:
            NcclError: if it or something after it failed.
        """
        state = ctypes.c_int()
        self._call("ncclCommGetAsyncError", communicator, ctypes.byref(state))
        if state.value not in (SUCCESS, IN_PROGRESS):
            raise self._error("NCCL", state.value)
        return state.value == IN_PROGRESS

    def send(self, runs: Sequence[tuple[int, int]], communicator: int, stream: int) -> None:
        """Begin to send these addresses and sizes to the other rank, in a stream's order, as one operation."""
        self._group("ncclSend", runs, communicator, 1, stream)

    def receive(self, runs: Sequence[tuple[int, int]], communicator: int, stream: int) -> None:
        """Begin to receive from the other rank, as it sends."""
        self._group("ncclRecv", runs, communicator, 0, stream)

    def _group(self, name: str, runs: Sequence[tuple[int, int]], communicator: int, peer: int, stream: int) -> None:
        self._call("ncclGroupStart")
        try:
            for address, size in runs:
                self._call(name, address, size, _BYTES, peer, communicator, stream)
        finally:
            code = self._library.ncclGroupEnd()
        if code not in (SUCCESS, IN_PROGRESS):
            raise self._error("ncclGroupEnd", code)

    def abort(self, communicator: int) -> None:
        """End everything that goes on, on the GPU too, and free the communicator."""
        self._call("ncclCommAbort", communicator)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code not in (SUCCESS, IN_PROGRESS):
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> NcclError:
        text = (self._library.ncclGetErrorString(code) or b"").decode(errors="replace")
        last = (self._library.ncclGetLastError(None) or b"").decode(errors="replace").strip()
        return NcclError(f"{name}: {text}" + (f" ({last.splitlines()[-1]})" if last else ""))


def readable(version: int) -> str:
    """A version number in its usual form."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
