"""Numbers that all processes of one proxy share, in memory that outlives each of them.

Every process has a row that only it writes while it lives, so counting needs no lock: the total is the sum of a column. Limits are
checked and claimed under a lock, which the kernel releases if its holder dies. After its row, a process has a `DebtLog`;
`worker_pool` settles both for a process that died.

A row begins with `Head`. Then come the columns of each engine (`Cell`), in the order of their slots. Slot 0 is for engines that are
gone.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

from pd_proxy.processes.debt_log import LOG_BYTES, DebtLog

SLOTS: Final = 4096
_CELL_BYTES: Final = 8
_PAGE_BYTES: Final = 4096


class Head(IntEnum):
    """The first cells of a row: requests in flight, all requests so far, turns taken, and since when the process queues for room (ns)."""

    IN_FLIGHT = 0
    REQUESTS = 1
    TURNS = 2
    QUEUED_SINCE = 3
    LOOKED_AT = 4


class Cell(IntEnum):
    """The cells that a row has for each engine."""

    FLIGHTS = 0
    CLAIMED = 1
    HANDOVERS = 2


_ROW_CELLS: Final = len(Head) + SLOTS * len(Cell)
_ROW_BYTES: Final = -(-_ROW_CELLS * _CELL_BYTES // _PAGE_BYTES) * _PAGE_BYTES
_PROCESS_BYTES: Final = _ROW_BYTES + LOG_BYTES


def column(slot: int, cell: Cell) -> int:
    """The index of an engine's cell in every row."""
    return len(Head) + slot * len(Cell) + cell


class EngineSlots:
    """The assignment of columns to engines: one slot per incarnation."""

    def __init__(self, count: int = SLOTS) -> None:
        self._slots: dict[int, int] = {}
        self._free = list(range(count - 1, 0, -1))

    def of(self, incarnation: int) -> int:
        """The slot of an incarnation; 0 if it has none, or no longer has one."""
        return self._slots.get(incarnation, 0)

    def assign(self, incarnations: Collection[int], idle: Callable[[int], bool]) -> Mapping[int, int]:
        """Give every engine a slot. The slot of an engine that is gone is free once its counts are zero."""
        gone = [one for one, slot in self._slots.items() if one not in incarnations and idle(slot)]
        self._free += [self._slots.pop(one) for one in gone]
        for one in incarnations:
            if one not in self._slots and self._free:
                self._slots[one] = self._free.pop()
        return {one: self.of(one) for one in incarnations}

    def adopt(self, slots: Mapping[int, int]) -> None:
        """Use the slots that the parent has assigned."""
        self._slots = dict(slots)


class SharedCounters:
    """The rows and debt logs of all processes; row 0 is the parent's.

    A row is a view of 64-bit cells, indexed by `Head` or by `column`. Only its process writes there. It stores one aligned cell at a
    time, so others never see half of a number.
    """

    def __init__(self, descriptor: int, rows: int) -> None:
        """Map the memory of an open file; the object now owns the descriptor."""
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, rows * _PROCESS_BYTES)
        self._memory = memoryview(self._map)
        self.rows = [self._row(number) for number in range(rows)]

    @classmethod
    def create(cls, rows: int) -> "SharedCounters":
        """New memory, all zero."""
        descriptor = _anonymous_file()
        os.ftruncate(descriptor, rows * _PROCESS_BYTES)
        return cls(descriptor, rows)

    def debt_log(self, row: int) -> DebtLog:
        start = row * _PROCESS_BYTES
        return DebtLog(self._memory[start + _ROW_BYTES : start + _PROCESS_BYTES])

    def total(self, index: int) -> int:
        """The sum over all processes."""
        return sum(row[index] for row in self.rows)

    def clear(self, row: int) -> None:
        """Set a row's numbers to zero and empty its log, for the successor of a process that died."""
        start = row * _PROCESS_BYTES
        self._memory[start : start + _ROW_BYTES] = bytes(_ROW_BYTES)
        self.debt_log(row).clear()

    def idle(self, slot: int) -> bool:
        """Whether all counts of a slot are zero."""
        return not any(self.total(column(slot, cell)) for cell in Cell)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock while a limit is checked and claimed; microseconds. It is a record lock: it belongs to the process, and ends with it."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Unmap the memory; rows and logs cannot be used any more."""
        os.close(self.descriptor)

    def _row(self, number: int) -> memoryview:
        start = number * _PROCESS_BYTES
        return self._memory[start : start + _ROW_CELLS * _CELL_BYTES].cast("q")


def ahead(rows: Iterable[memoryview], mine: memoryview, patience_ns: int) -> bool:
    """Whether another process has queued for longer. One that has not looked for `patience_ns` does not count: it may have stalled."""
    since, now = mine[Head.QUEUED_SINCE], mine[Head.LOOKED_AT]
    return any(
        0 < row[Head.QUEUED_SINCE] < since and now - row[Head.LOOKED_AT] < patience_ns
        for row in rows
        if row is not mine
    )


def _anonymous_file() -> int:
    # On Linux, memfd_create needs no writable file system.
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pd-proxy-counters")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
