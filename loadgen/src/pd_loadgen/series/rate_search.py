"""The highest rate that meets the limits: bisection over runs with repeated seeds, and how sure the answer is. Pure.

A rate is good if the share of all requests that meet every limit (failures never do), pooled over the seeds, is at least what is
asked. The pooled share has a Wilson interval of 95%. If that interval contains the share asked for, the verdict on this rate is
uncertain. So the answer is an interval as well: from the highest rate that was surely good to the lowest that was surely bad.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_Z95: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to look and when to stop. `tolerance` is the width of the interval, as a fraction of the rate, that is narrow enough."""

    attainment: float
    low: float
    high: float
    tolerance: float
    most: int


@dataclass(frozen=True, slots=True)
class Probe:
    """The result at one rate, over all seeds."""

    rate: float
    good: int
    requests: int

    @property
    def share(self) -> float:
        """The attainment, 0 to 1; 0 without requests."""
        return self.good / self.requests if self.requests else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the attainment; (0, 1) without requests."""
        if not self.requests:
            return 0.0, 1.0
        count, share, square = self.requests, self.share, _Z95 * _Z95
        middle = share + square / (2 * count)
        half = _Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
        return max(0.0, (middle - half) / (1 + square / count)), min(1.0, (middle + half) / (1 + square / count))


@dataclass(frozen=True, slots=True)
class Answer:
    """The highest good rate (None if none was), the rates between which the true one lies, and whether it is close enough.

    `at_least` is None if no rate was surely good, `at_most` if none was surely bad.
    """

    rate: float | None
    at_least: float | None
    at_most: float | None
    close: bool


def next_rate(goal: Goal, probes: Sequence[Probe]) -> float | None:
    """The rate to try now; None once the answer is close enough, or cannot come closer.

    The lowest comes first, then the highest, then the middle of the highest good and the lowest bad one.
    """
    good, bad = _bounds(goal, probes)
    if len(probes) >= goal.most:
        return None
    if not probes:
        return goal.low
    if good is None or (bad is None and good >= goal.high):
        return None
    if bad is None:
        return goal.high
    return None if bad - good <= goal.tolerance * good else round((good + bad) / 2, 6)


def answer(goal: Goal, probes: Sequence[Probe]) -> Answer:
    good, bad = _bounds(goal, probes)
    surely_good = [probe.rate for probe in probes if probe.interval[0] >= goal.attainment]
    surely_bad = [probe.rate for probe in probes if probe.interval[1] < goal.attainment]
    close = good is not None and bad is not None and bad - good <= goal.tolerance * good
    return Answer(good, max(surely_good, default=None), min(surely_bad, default=None), close)


def _bounds(goal: Goal, probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """Highest good rate below every bad one, and the lowest bad one: a good rate above a bad one counts as chance."""
    bad = min((probe.rate for probe in probes if probe.share < goal.attainment), default=None)
    good = [probe.rate for probe in probes if probe.share >= goal.attainment and (bad is None or probe.rate < bad)]
    return max(good, default=None), bad
