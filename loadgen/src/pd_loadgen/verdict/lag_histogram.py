"""Lags counted in steps of 10 µs: a run of an hour has millions, and each process hands its own to the master."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from pd_contracts.latency import ranked

STEPS_A_SECOND: Final = 100_000


@dataclass(slots=True)
class LagHistogram:
    """How many lags fell into each step; a step's name is its number, counted from 0."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        step = int(seconds * STEPS_A_SECOND)
        self.counts[step] = self.counts.get(step, 0) + 1

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def above(self, seconds: float) -> int:
        """How many are longer, to a step."""
        limit = int(seconds * STEPS_A_SECOND)
        return sum(number for step, number in self.counts.items() if step > limit)


def pooled(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    whole: dict[int, int] = {}
    for part in parts:
        for step, number in part.items():
            whole[step] = whole.get(step, 0) + number
    return whole


def percentile(counts: Mapping[int, int], q: float) -> float | None:
    """`latency.percentile` of the lags in seconds, each rounded up to a step; None without any."""
    steps = sorted(counts)
    seen = list(accumulate(counts[step] for step in steps))
    return ranked(lambda rank: (steps[bisect_right(seen, rank)] + 1) / STEPS_A_SECOND, seen[-1] if seen else 0, q)
