"""A fixed number of memory pages, each in exactly one state. An invalid change is an error, so no page gets two owners."""

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Final

FREE: Final = "free"


class PageError(RuntimeError):
    """A page was not in the expected state: a bug in this program."""


class Pages:
    """The state of each page. Free pages are given out lowest first, so that adjacent pages can be copied together."""

    def __init__(self, count: int) -> None:
        self._states = [FREE] * count
        self._free = list(range(count))
        self._counts = Counter({FREE: count})

    def __len__(self) -> int:
        return len(self._states)

    @property
    def free(self) -> int:
        return self._counts[FREE]

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        return {state: count for state, count in self._counts.items() if count or state == FREE}

    def state(self, page: int) -> str | None:
        """The state of a page; None if there is no such page."""
        return self._states[page] if 0 <= page < len(self._states) else None

    def take(self, most: int, state: str) -> list[int]:
        """Take up to `count` free pages."""
        pages = [heapq.heappop(self._free) for _ in range(min(most, self.free))]
        for page in pages:
            self._set(page, state)
        return pages

    def move(self, pages: Iterable[int], before: str, after: str) -> None:
        """Change the state of pages, which all must be in the one `before`.

        Raises:
            PageError: if one is not.
        """
        for page in pages:
            if self.state(page) != before:
                msg = f"page {page} is {self.state(page)}, not {before}"
                raise PageError(msg)
            self._set(page, after)
            if after == FREE:
                heapq.heappush(self._free, page)

    def _set(self, page: int, state: str) -> None:
        self._counts[self._states[page]] -= 1
        self._counts[state] += 1
        self._states[page] = state
