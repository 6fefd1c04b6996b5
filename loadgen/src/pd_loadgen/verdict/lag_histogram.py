"""Lags counted in steps of 10 µs: a run of an hour has millions, and each process hands its own to the master."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

STEPS_A_SECOND: Final = 100_000


@dataclass(slots=True)
class LagHistogram:
    """How many lags fell into each step; a step's name is its number, counted from 0."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        """Count one."""
        step = int(seconds * STEPS_A_SECOND)
        self.counts[step] = self.counts.get(step, 0) + 1

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def above(self, seconds: float) -> int:
        """How many are longer, to a step."""
        limit = int(seconds * STEPS_A_SECOND)
        return sum(number for step, number in self.counts.items() if step > limit)


def pooled(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """All counts as one."""
    whole: dict[int, int] = {}
    for part in parts:
        for step, number in part.items():
            whole[step] = whole.get(step, 0) + number
    return whole


def percentile(counts: Mapping[int, int], q: float) -> float | None:
    """The smallest lag in seconds that q % of all do not exceed, rounded up to a step; None without any."""
    rank = math.ceil(sum(counts.values()) * q / 100)
    seen = 0
    for step in sorted(counts):
        seen += counts[step]
        if seen >= rank:
            return (step + 1) / STEPS_A_SECOND
    return None
