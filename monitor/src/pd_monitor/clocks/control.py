"""The only module that calls NVML's setters, and what must be read before they may be."""

import contextlib
from collections.abc import Callable
from typing import Any

import pynvml

from pd_monitor.backends.nvml_board import UNREADABLE, Board, Handle, sentence
from pd_monitor.clocks.journal import Change
from pd_monitor.clocks.plan import BoardState, ClockError, Step


class Control:
    """All boards of this host. Open it with `with`."""

    def __init__(self) -> None:
        self.changed = 0
        self._handles: dict[str, tuple[int, Handle]] = {}

    def __enter__(self) -> "Control":
        """Open NVML.

        Raises:
            ClockError: if there is none.
        """
        try:
            pynvml.nvmlInit()
            for position in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(position)
                self._handles[pynvml.nvmlDeviceGetUUID(handle)] = position, handle
        except UNREADABLE as error:
            raise ClockError(sentence(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(*UNREADABLE):  # a driver that went away has nothing left to shut down
            pynvml.nvmlShutdown()

    def states(self) -> list[BoardState]:
        return [_state(index, uuid, handle) for uuid, (index, handle) in self._handles.items()]

    def board(self, uuid: str, now: float) -> Board:
        """For reading a board while it is set."""
        index, handle = self._handles[uuid]
        return Board(index, handle, now, medium_s=0.0)  # whether it idles is asked for every sample

    def cap_w(self, uuid: str) -> float | None:
        """The power limit that the board says it has."""
        limit = _or_none(pynvml.nvmlDeviceGetPowerManagementLimit, self._handles[uuid][1])
        return None if limit is None else limit / 1e3

    def apply(self, step: Step) -> None:
        """Lock and cap one board; `changed` counts the setters that succeeded.

        Raises:
            ClockError: if the board refuses; status 4 for want of permission.
        """
        handle = self._handles[step.board.uuid][1]
        try:
            if step.wish.lock_mhz is not None:
                pynvml.nvmlDeviceSetGpuLockedClocks(handle, step.wish.lock_mhz, step.wish.lock_mhz)
                self.changed += 1
            if step.wish.cap_w is not None:
                pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(step.wish.cap_w * 1e3))
                self.changed += 1
        except UNREADABLE as error:
            raise _refused(f"GPU {step.board.index}", error) from error

    def restore(self, change: Change) -> None:
        """Take a change back; doing it twice does no harm.

        Raises:
            ClockError: if the board refuses or is not there.
        """
        if change.uuid not in self._handles:
            msg = f"{change.uuid} is not on the bus; its clocks are restored when it is back"
            raise ClockError(msg)
        handle = self._handles[change.uuid][1]
        try:
            if change.locked:
                pynvml.nvmlDeviceResetGpuLockedClocks(handle)
            if change.previous_cap_mw is not None:
                pynvml.nvmlDeviceSetPowerManagementLimit(handle, change.previous_cap_mw)
        except UNREADABLE as error:
            raise _refused(change.uuid, error) from error


def _refused(board: str, error: Exception) -> ClockError:
    if getattr(error, "value", None) == pynvml.NVML_ERROR_NO_PERMISSION:
        msg = f"{board}: {error}: setting clocks needs root or CAP_SYS_ADMIN"
        return ClockError(msg, 4)
    return ClockError(f"{board}: {sentence(error)}")


def _state(index: int, uuid: str, handle: Handle) -> BoardState:
    constraints = _or_none(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    mig = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    return BoardState(
        index=index,
        uuid=uuid,
        name=_or_none(pynvml.nvmlDeviceGetName, handle) or "",
        clocks_mhz=_or_none(_clock_range, handle),
        cap_mw=_or_none(pynvml.nvmlDeviceGetPowerManagementLimit, handle),
        cap_range_mw=(constraints[0], constraints[1]) if constraints else None,
        mig=bool(mig and mig[0]),
        virtualization=_or_none(pynvml.nvmlDeviceGetVirtualizationMode, handle),
        processes=_processes(handle),
    )


def _clock_range(handle: Handle) -> tuple[int, int]:
    memory = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle))
    graphics = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)
    return min(graphics), max(graphics)


def _processes(handle: Handle) -> tuple[int, ...]:
    """Who uses the board.

    Raises:
        ClockError: if that cannot be said; a board of which nobody knows the users is not touched.
    """
    try:
        return tuple(process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except UNREADABLE as error:
        msg = f"it cannot be said who uses the GPU: {sentence(error)}"
        raise ClockError(msg) from error


def _or_none(call: Callable[[Handle], Any], handle: Handle) -> Any:
    try:
        return call(handle)
    except UNREADABLE:
        return None  # the plan decides what may be unknown
