"""Holding clocks.

In order: restore what a killed process left changed, write the journal, set the clocks; and restore them at the end, whatever ends it.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from pd_contracts.records import GpuSample
from pd_monitor.backends.nvml_board import BoardLostError
from pd_monitor.clocks.control import Control
from pd_monitor.clocks.guard import Guard, restore
from pd_monitor.clocks.journal import Journal
from pd_monitor.clocks.plan import ClockError, Step

SAMPLE_S: Final = 0.1


class Hold:
    """Changes to the boards while the guard watches."""

    def __init__(self, control: Control, journal: Journal, guard: Guard) -> None:
        self.control = control
        self._journal = journal
        self._guard = guard

    def apply(self, steps: Sequence[Step]) -> None:
        """Change the boards, after restoring what was changed before.

        Raises:
            ClockError: if a board refuses; the end of `holding` restores what was changed.
        """
        restore(self.control, self._journal)
        if not steps:
            return
        self._journal.write(steps)
        before = self.control.changed
        try:
            for step in steps:
                self.control.apply(step)
        except ClockError:
            if self.control.changed == before:
                self._journal.keep([])  # nothing was changed, and without the right to set there is none to reset
            raise

    def watch(self, uuids: Iterable[str], until: Callable[[], bool]) -> dict[str, list[GpuSample]]:
        """Send heartbeats and read the boards, ten times a second, until `until` is true; returns the samples by UUID.

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
    """Hold the right to change clocks on this host; what was changed is restored at the end.

    Raises:
        ClockError: if another process has it, what a killed process left changed cannot be restored, or the guard does not start.
    """
    journal.hold()
    try:
        restore(control, journal)
        with Guard(journal.folder, lease_s) as guard:
            try:
                yield Hold(control, journal, guard)
            finally:
                restore(control, journal)
    finally:
        journal.release()
