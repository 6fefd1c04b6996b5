"""Numbers that all processes of one proxy share, in memory that outlives each of them.

Every process has a row that nobody else writes while it lives, so that counting needs no lock: what all of them have is the sum of a
column. A bound is checked and claimed under a lock, which the kernel takes back from a process that dies with it. Behind its row, a process has a `DebtLog`; `worker_pool` settles both for a process that died.

A row begins with `Head`. Then come the columns of every engine (`Cell`), in the order of their slots. Slot 0 belongs to no engine:
what belongs to an engine that is gone is counted there.
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
    """What a row begins with: requests in flight, requests ever, turns taken, and since when it queues for room (times, ns)."""

    IN_FLIGHT = 0
    REQUESTS = 1
    TURNS = 2
    QUEUED_SINCE = 3
    LOOKED_AT = 4


class Cell(IntEnum):
    """What a row has for each engine."""

    FLIGHTS = 0
    CLAIMED = 1
    HANDOVERS = 2


_ROW_CELLS: Final = len(Head) + SLOTS * len(Cell)
_ROW_BYTES: Final = -(-_ROW_CELLS * _CELL_BYTES // _PAGE_BYTES) * _PAGE_BYTES
_PROCESS_BYTES: Final = _ROW_BYTES + LOG_BYTES


def column(slot: int, cell: Cell) -> int:
    """Where an engine's number stands in every row."""
    return len(Head) + slot * len(Cell) + cell


class EngineSlots:
    """Which columns belong to which engine: a slot for each incarnation."""

    def __init__(self, count: int = SLOTS) -> None:
        self._slots: dict[int, int] = {}
        self._free = list(range(count - 1, 0, -1))

    def of(self, incarnation: int) -> int:
        """Its slot; 0 if it has none (any more)."""
        return self._slots.get(incarnation, 0)

    def assign(self, incarnations: Collection[int], idle: Callable[[int], bool]) -> Mapping[int, int]:
        """Give every engine a slot. The slot of an engine that is gone becomes free once nothing is counted there."""
        gone = [one for one, slot in self._slots.items() if one not in incarnations and idle(slot)]
        self._free += [self._slots.pop(one) for one in gone]
        for one in incarnations:
            if one not in self._slots and self._free:
                self._slots[one] = self._free.pop()
        return {one: self.of(one) for one in incarnations}

    def adopt(self, slots: Mapping[int, int]) -> None:
        """Use the slots that another process has assigned."""
        self._slots = dict(slots)


class SharedCounters:
    """The rows and debt logs of all processes; row 0 is the parent's.

    A row is a view of 64-bit cells, indexed by `Head` or what `column` says. Only the process whose row it is writes there; it stores one
    aligned cell at a time, which others see whole.
    """

    def __init__(self, descriptor: int, rows: int) -> None:
        """Map the memory behind an open file; the descriptor belongs to this object from now on."""
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
        """What all processes have together."""
        return sum(row[index] for row in self.rows)

    def clear(self, row: int) -> None:
        """Set all its numbers to zero and empty its log; for the successor of a process that died."""
        start = row * _PROCESS_BYTES
        self._memory[start : start + _ROW_BYTES] = bytes(_ROW_BYTES)
        self.debt_log(row).clear()

    def idle(self, slot: int) -> bool:
        """Whether nothing is counted in a slot."""
        return not any(self.total(column(slot, cell)) for cell in Cell)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While a bound is checked and claimed; microseconds. A record lock: it belongs to the process, and ends with it."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the memory back; rows and logs cannot be used any more."""
        os.close(self.descriptor)

    def _row(self, number: int) -> memoryview:
        start = number * _PROCESS_BYTES
        return self._memory[start : start + _ROW_CELLS * _CELL_BYTES].cast("q")


def ahead(rows: Iterable[memoryview], mine: memoryview, patience_ns: int) -> bool:
    """Whether another process has queued for longer; one that has not looked for `patience_ns` does not count: it may stand still."""
    since, now = mine[Head.QUEUED_SINCE], mine[Head.LOOKED_AT]
    return any(
        0 < row[Head.QUEUED_SINCE] < since and now - row[Head.LOOKED_AT] < patience_ns
        for row in rows
        if row is not mine
    )


def _anonymous_file() -> int:
    # No file system needs to be writable for it where there is such a call (Linux).
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pd-proxy-counters")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
