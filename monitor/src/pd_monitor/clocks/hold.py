"""Holding clocks: orphans first, then the journal, then the setters, and everything back at the end, whatever ends it."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from pd_contracts.records import GpuSample
from pd_monitor.backends.nvml_board import BoardLostError
from pd_monitor.clocks.control import Control
from pd_monitor.clocks.guard import Guard, take_back
from pd_monitor.clocks.journal import Journal
from pd_monitor.clocks.plan import ClockError, Step

SAMPLE_S: Final = 0.1


class Hold:
    """What may be done while the guard watches."""

    def __init__(self, control: Control, journal: Journal, guard: Guard) -> None:
        self.control = control
        self._journal = journal
        self._guard = guard

    def apply(self, steps: Sequence[Step]) -> None:
        """Change the boards; in the place of what was changed before.

        Raises:
            ClockError: if a board refuses; the end of `holding` takes back what was changed.
        """
        take_back(self.control, self._journal)
        if not steps:
            return
        self._journal.write(steps)
        before = self.control.changed
        try:
            for step in steps:
                self.control.apply(step)
        except ClockError:
            if self.control.changed == before:
                self._journal.keep([])  # who may not set may not reset either, and there is nothing to take back
            raise

    def watch(self, uuids: Iterable[str], until: Callable[[], bool]) -> dict[str, list[GpuSample]]:
        """Beat and read the boards ten times a second until told to stop; the samples by UUID.

        Raises:
            ClockError: if the lease or a board is lost.
        """
        boards = {uuid: self.control.board(uuid, time.monotonic()) for uuid in uuids}
        samples: dict[str, list[GpuSample]] = {uuid: [] for uuid in boards}
        while True:
            last = until()  # asked before the samples, so that they reach past the end
            self._guard.beat()
            for uuid, board in boards.items():
                try:
                    samples[uuid].append(board.sample(time.monotonic))
                except BoardLostError as error:
                    msg = f"GPU {board.index}: {error}"
                    raise ClockError(msg) from error
            if last:
                return samples
            time.sleep(SAMPLE_S)


@contextlib.contextmanager
def holding(control: Control, journal: Journal, lease_s: float) -> Iterator[Hold]:
    """The right to change clocks on this host; what was changed in it is taken back at its end.

    Raises:
        ClockError: if another process has it, orphans cannot be taken back, or the guard does not start.
    """
    journal.hold()
    try:
        take_back(control, journal)
        with Guard(journal.folder, lease_s) as guard:
            try:
                yield Hold(control, journal, guard)
            finally:
                take_back(control, journal)
    finally:
        journal.release()
