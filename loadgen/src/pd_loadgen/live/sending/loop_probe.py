"""How late the event loop notices what is ready, measured with a descriptor that becomes readable at known times.

On Linux that is a timerfd: the kernel makes it readable on the microsecond, whatever this process is doing, and the loop finds it
just as it finds a socket with tokens in it. Elsewhere the loop's own timer serves, whose resolution of a millisecond then is part
of the lag.
"""

import ctypes
import os
import sys
import time
from typing import Final, Protocol

from gevent.hub import get_hub

from pd_loadgen.verdict.lag_histogram import LagHistogram

PERIOD_S: Final = 0.005
_READ: Final = 1
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Probe(Protocol):
    """A running probe; `lags` grows while it runs."""

    lags: LagHistogram

    def close(self) -> None: ...


def start() -> Probe:
    """Start the best probe that this system has."""
    return KernelProbe() if sys.platform == "linux" else LoopProbe()


class _TimeSpec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _ITimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class KernelProbe:
    """A probe with a timerfd on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        """Arm it; the n-th expiry is at start + n periods.

        Raises:
            OSError: if the kernel refuses.
        """
        self.lags = LagHistogram()
        self._fd = _timer()
        self._due = time.monotonic() + PERIOD_S
        _arm(self._fd, self._due)
        self._watcher = get_hub().loop.io(self._fd, _READ)
        self._watcher.start(self._on_readable)

    def close(self) -> None:
        self._watcher.close()
        os.close(self._fd)

    def _on_readable(self) -> None:
        count = int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        now = time.monotonic()
        for _ in range(count):  # a stall of ten periods is ten late looks, not one
            self.lags.add(now - self._due)
            self._due += PERIOD_S


class LoopProbe:
    """A probe with the loop's own timer, for systems without timerfd."""

    def __init__(self) -> None:
        self.lags = LagHistogram()
        self._due = time.monotonic() + PERIOD_S
        self._timer = get_hub().loop.timer(PERIOD_S, PERIOD_S)
        self._timer.start(self._on_time)

    def close(self) -> None:
        self._timer.close()

    def _on_time(self) -> None:
        now = time.monotonic()
        while self._due <= now:
            self.lags.add(now - self._due)
            self._due += PERIOD_S


def _timer() -> int:
    fd: int = _libc().timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return fd


def _arm(fd: int, first: float) -> None:
    spec = _ITimerSpec(_spec(PERIOD_S), _spec(first))
    absolute = 1
    if _libc().timerfd_settime(fd, absolute, ctypes.byref(spec), None) < 0:
        raise OSError(ctypes.get_errno(), "timerfd_settime")


def _spec(seconds: float) -> _TimeSpec:
    return _TimeSpec(int(seconds), int(seconds % 1 * 1e9))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
