"""A log of a process's possible debts, in memory that outlives it: written while requests run, read only after a crash.

Each record is one debt: KV on its way to a decode, which would have to be consumed if this process died now.
"""

from typing import Final

RECORDS: Final = 4096
# One page: room for the debt of a request with about thirty prompts. A larger debt is not recorded.
RECORD_BYTES: Final = 4096
LENGTHS_BYTES: Final = 4 * RECORDS
LOG_BYTES: Final = LENGTHS_BYTES + RECORDS * RECORD_BYTES


class DebtLog:
    """The records of one process, each contiguous; they stay when the process is killed."""

    def __init__(self, memory: memoryview) -> None:
        """`memory` has LOG_BYTES bytes, all zero or a log already. All lengths come first, so that reading them touches few pages."""
        self._lengths = memory[:LENGTHS_BYTES].cast("I")
        self._records = memory[LENGTHS_BYTES:]
        self._free = list(range(RECORDS - 1, -1, -1))

    def write(self, entry: bytes) -> int | None:
        """Store an entry and return its number; None if it is too large or there is no room."""
        if len(entry) > RECORD_BYTES or not self._free:
            return None
        number = self._free.pop()
        start = number * RECORD_BYTES
        self._records[start : start + len(entry)] = entry
        # The length is written last: if the process is killed before, there is no entry.
        self._lengths[number] = len(entry)
        return number

    def erase(self, number: int) -> None:
        """Erase an entry: the KV has arrived, or another part is responsible for it."""
        self._lengths[number] = 0
        self._free.append(number)

    def entries(self) -> list[bytes]:
        """All entries that are not erased."""
        starts = [(number * RECORD_BYTES, length) for number, length in enumerate(self._lengths) if length]
        return [bytes(self._records[start : start + length]) for start, length in starts]

    def clear(self) -> None:
        """Erase everything."""
        for number in range(RECORDS):
            self._lengths[number] = 0
