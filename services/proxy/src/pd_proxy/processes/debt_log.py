"""What a process has let go out and may owe, in memory that outlives it: written before it is needed, read after a crash.

Each record is one debt: KV that is on its way to a decode, as it would have to be used up if this process died now.
"""

from typing import Final

RECORDS: Final = 4096
# A page: room for the debt of a request with some thirty prompts. What does not fit is not recorded.
RECORD_BYTES: Final = 4096
LENGTHS_BYTES: Final = 4 * RECORDS
LOG_BYTES: Final = LENGTHS_BYTES + RECORDS * RECORD_BYTES


class DebtLog:
    """Records of one process, each in one piece; what was written stays when the process is killed."""

    def __init__(self, memory: memoryview) -> None:
        """Over LOG_BYTES that are all zero or were a log before. All lengths come first, so that looking at them touches little."""
        self._lengths = memory[:LENGTHS_BYTES].cast("I")
        self._records = memory[LENGTHS_BYTES:]
        self._free = list(range(RECORDS - 1, -1, -1))

    def write(self, entry: bytes) -> int | None:
        """Keep an entry and return where; None if it is too large or there is no room."""
        if len(entry) > RECORD_BYTES or not self._free:
            return None
        number = self._free.pop()
        start = number * RECORD_BYTES
        self._records[start : start + len(entry)] = entry
        # The length comes last: until then there is no entry, whenever the process is killed.
        self._lengths[number] = len(entry)
        return number

    def erase(self, number: int) -> None:
        """The KV has arrived, or somebody else sees to it."""
        self._lengths[number] = 0
        self._free.append(number)

    def entries(self) -> list[bytes]:
        """Everything that is not erased."""
        starts = [(number * RECORD_BYTES, length) for number, length in enumerate(self._lengths) if length]
        return [bytes(self._records[start : start + length]) for start, length in starts]

    def clear(self) -> None:
        """Erase everything."""
        for number in range(RECORDS):
            self._lengths[number] = 0
