"""One number of two runs: better, worse, equal or unclear; no outcome if the runs must not be compared."""

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from pd_analysis.numbers import bootstrap
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import MODES
from pd_analysis.numbers.measures import Measure
from pd_analysis.numbers.parity import prompts_apart, timetables_apart
from pd_analysis.words.language import mark


class Outcome(StrEnum):
    """The outcome of a comparison, for the other run against the baseline."""

    BETTER = "better"
    WORSE = "worse"
    EQUAL = "equal"
    UNCLEAR = "unclear"
    UNKNOWN = "unknown"  # one of the two has no such number, or neither direction is better


OUTCOMES: Final = {
    Outcome.BETTER: mark("better"),
    Outcome.WORSE: mark("worse"),
    Outcome.EQUAL: mark("equal"),
    Outcome.UNCLEAR: mark("unclear"),
    Outcome.UNKNOWN: mark("not comparable"),
}


class Bar(StrEnum):
    """Why two runs must not be compared, whatever their numbers."""

    LOADS = "loads"
    SCHEDULES = "schedules"
    MODELS = "models"
    UNFIT = "unfit"
    METHODS = "methods"
    LIMITS = "limits"
    FEW = "few"


# With fewer requests, the draws of a bootstrap lie close together however far the next requests would be from them.
ENOUGH_TO_DECIDE: Final = 20


@dataclass(frozen=True)
class Comparison:
    """One measure of two runs.

    Attributes:
        ratio: other / baseline; None if either is unknown or the baseline is 0.
        interval: where the ratio lies in `bootstrap.LEVEL` per cent of the draws; None if there are no draws.
        bar: why no winner may be named although the numbers are known.
    """

    measure: Measure
    baseline: Result
    other: Result
    ratio: float | None
    outcome: Outcome
    interval: tuple[float, float] | None = None
    bar: Bar | None = None

    @property
    def known(self) -> bool:
        """Both runs have the number."""
        return self.measure.get(self.baseline) is not None and self.measure.get(self.other) is not None

    @property
    def winner(self) -> Result | None:
        """The better run, if there is one."""
        return {Outcome.BETTER: self.other, Outcome.WORSE: self.baseline}.get(self.outcome)

    @property
    def loser(self) -> Result | None:
        """The other one, if there is a winner."""
        return {Outcome.BETTER: self.baseline, Outcome.WORSE: self.other}.get(self.outcome)

    @property
    def factor(self) -> float | None:
        """The larger divided by the smaller; None where one is 0 or unknown."""
        return max(self.ratio, 1 / self.ratio) if self.ratio else None


def compared(measure: Measure, baseline: Result, other: Result) -> Comparison:
    """Compute the ratio of a measure and its outcome."""
    ours, theirs = measure.get(baseline), measure.get(other)
    barred = _bar_of(measure, baseline, other) if ours is not None and theirs is not None else None
    interval = _ratio_interval(measure, baseline, other)
    return Comparison(
        measure=measure,
        baseline=baseline,
        other=other,
        ratio=theirs / ours if ours and theirs is not None else None,
        outcome=Outcome.UNCLEAR if barred else _judged(measure, baseline, other, interval),
        interval=interval,
        bar=barred,
    )


def judged(measure: Measure, baseline: Result, other: Result) -> Outcome:
    """The outcome of two runs whose loads differ by intent, as 20 requests/s of two GPUs and 40 of four."""
    if baseline.unfit or other.unfit or _few(baseline) or _few(other):
        return Outcome.UNCLEAR
    interval = _ratio_interval(measure, baseline, other)
    return _judged(measure, baseline, other, interval)


def _judged(measure: Measure, baseline: Result, other: Result, interval: tuple[float, float] | None) -> Outcome:
    """The outcome by the numbers; joules decide only if the power readings of boards that disagree with the counter lead to the same outcome."""
    outcome = _outcome(measure, measure.get(baseline), measure.get(other), interval)
    if measure.unit != "J" or outcome not in {Outcome.BETTER, Outcome.WORSE}:
        return outcome
    ours, theirs = measure.get(baseline) or 0.0, measure.get(other) or 0.0
    shares = itertools.product(_bounds(baseline), _bounds(other))
    extremes = {_outcome(measure, ours * one, theirs * two, None) for one, two in shares}
    return outcome if extremes == {outcome} else Outcome.UNCLEAR


def _bar_of(measure: Measure, one: Result, two: Result) -> Bar | None:
    """Why this measure of two runs must not be compared: what holds for all of them, or for it alone."""
    barred = bar(one, two, energy=measure.unit == "J")
    if barred is None and measure.within_limits and _limits(one) != _limits(two):
        return Bar.LIMITS
    return barred


def _limits(result: Result) -> dict[str, float]:
    return result.run.manifest.workload.goodput


def _bounds(result: Result) -> tuple[float, float]:
    return result.energy.bounds_share if result.energy else (1.0, 1.0)


def bar(one: Result, two: Result, *, energy: bool = False) -> Bar | None:
    """The first reason not to compare two runs; joules also need one method."""
    if one.unfit or two.unfit:
        return Bar.UNFIT
    apart = _offered_apart(one, two)
    if apart is not None:
        return apart
    if _few(one) or _few(two):
        return Bar.FEW
    if energy and len({*_methods(one), *_methods(two)}) > 1:
        return Bar.METHODS
    return None


def _offered_apart(one: Result, two: Result) -> Bar | None:
    """What differs in what they were asked."""
    if one.load != two.load or prompts_apart((one, two)):
        return Bar.LOADS
    models = {run.manifest.workload.model for result in (one, two) for run in result.runs} - {""}
    if len(models) > 1:
        return Bar.MODELS
    return Bar.SCHEDULES if _other_schedules(one, two) else None


def _few(result: Result) -> bool:
    """Whether a run has too few requests to decide; in a mode, a load is few requests by design, and its tables say so."""
    return result.load.pace not in MODES and len(result.requests.measured) < ENOUGH_TO_DECIDE


def _other_schedules(one: Result, two: Result) -> bool:
    hashes = _hashes(one), _hashes(two)
    known = "" not in hashes[0] | hashes[1]
    return (known and not hashes[0] & hashes[1]) or timetables_apart(one.runs, two.runs)


def _hashes(result: Result) -> set[str]:
    return {run.manifest.schedule_hash for run in result.runs}


def _methods(result: Result) -> set[str]:
    serving = result.energy.serving if result.energy else ()
    return {gpu.method for gpu in serving if gpu.method is not None}


def _outcome(
    measure: Measure, ours: float | None, theirs: float | None, interval: tuple[float, float] | None
) -> Outcome:
    if ours is None or theirs is None or measure.less_is_better is None:
        return Outcome.UNKNOWN
    small = _close(ours, theirs, measure.small)
    if interval is not None:
        if _within(interval, measure.small):
            return Outcome.EQUAL
        if interval[0] <= 1 <= interval[1] or small:
            return Outcome.UNCLEAR
    elif small:
        return Outcome.EQUAL
    return Outcome.BETTER if (theirs < ours) == measure.less_is_better else Outcome.WORSE


def _within(interval: tuple[float, float], small: float) -> bool:
    """Both ends are so near to 1 that any difference is small."""
    return interval[0] >= 1 / (1 + small) and interval[1] <= 1 + small


def _close(one: float, two: float, small: float) -> bool:
    """The larger is at most (1 + small) times the smaller."""
    return max(one, two) <= min(one, two) * (1 + small)


def _ratio_interval(measure: Measure, baseline: Result, other: Result) -> tuple[float, float] | None:
    if not measure.get(baseline) or measure.get(other) is None:
        return None
    ours, theirs = measure.draws(baseline), measure.draws(other)
    if ours is None or theirs is None or not np.all(ours > 0):
        return None
    return bootstrap.interval(theirs / ours)
