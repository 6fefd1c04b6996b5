"""The verdict from the draws: one choice against another by what the question asks for, and plain engines against separate prefill and decode."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, nan
from statistics import median
from typing import Final

from pd_planner.confidence.draws import Drawn
from pd_planner.search.fleet import needed
from pd_planner.search.question import Choice, Objective, Question, believed, rank

_SURE: Final = 0.9  # of the draws


class Outcome(StrEnum):
    """Which is ahead."""

    PLAIN = "plain"
    APART = "apart"
    EQUAL = "equal"
    UNCLEAR = "unclear"
    ALONE = "alone"  # there is nothing to compare with


class Measure(StrEnum):
    """What a question compares deployments by; only of CAPACITY more is better."""

    CAPACITY = "capacity"  # of all its GPUs
    PER_GPU = "capacity-per-gpu"
    GPUS = "GPUs"
    ENERGY = "energy"

    @classmethod
    def of(cls, question: Question) -> "Measure":
        if question.objective is Objective.ENERGY:
            return cls.ENERGY
        if question.objective is Objective.GPUS:
            return cls.GPUS
        return cls.PER_GPU if question.gpus is None else cls.CAPACITY

    @property
    def more_is_better(self) -> bool:
        return self in {Measure.CAPACITY, Measure.PER_GPU}


@dataclass(frozen=True)
class Comparison:
    """One choice against another, over the draws that both have.

    Attributes:
        ahead, equal, draws: in how many draws `one` is better, in how many neither is, and how many there are.
        ratio: median of one ÷ other.
    """

    one: Drawn
    other: Drawn
    measure: Measure
    ahead: int
    equal: int
    draws: int
    ratio: float

    @property
    def behind(self) -> int:
        return self.draws - self.ahead - self.equal

    @property
    def better(self) -> bool:
        """Whether `one` is ahead in more draws than it is behind."""
        return self.ahead > self.behind


@dataclass(frozen=True)
class Verdict:
    """The best plain choice against the best disaggregated one; `compared` is None if one of them is missing, else its `one` is the latter."""

    outcome: Outcome
    plain: Drawn | None
    apart: Drawn | None
    compared: Comparison | None


def values(drawn: Drawn, question: Question) -> list[float]:
    """What the question asks for, in each draw."""
    measure = Measure.of(question)
    if measure is Measure.ENERGY:
        return list(drawn.joules)
    if measure is Measure.GPUS:
        return [_needed(drawn.choice, per_gpu, question) for per_gpu in drawn.per_gpu]
    boards = drawn.choice.fleet.gpus if measure is Measure.CAPACITY else 1
    return [per_gpu * boards for per_gpu in drawn.per_gpu]


def _needed(choice: Choice, per_gpu: float, question: Question) -> float:
    candidate = choice.fleet.candidate
    fleet = needed(candidate, per_gpu * candidate.gpus, question.rate or 0.0, question.headroom)
    return fleet.gpus if fleet else inf


def compared(one: Drawn, other: Drawn, question: Question, share: float = 1.0) -> Comparison:
    """`share` below 1 makes `one` look so much worse, because less is known about it."""
    measure = Measure.of(question)
    pairs = list(zip(values(one, question), values(other, question), strict=False))
    able = pairs if not measure.more_is_better else [pair for pair in pairs if pair[1] > 0]
    ratios = [ours / theirs for ours, theirs in able if theirs < inf]
    weighed = [(ours * share if measure.more_is_better else ours / share, theirs) for ours, theirs in pairs]
    ahead = sum((ours > theirs) if measure.more_is_better else (ours < theirs) for ours, theirs in weighed)
    equal = sum(ours == theirs for ours, theirs in weighed)
    ratio = median(ratios) if ratios else nan
    return Comparison(one, other, measure, ahead, equal, len(pairs), ratio)


def first(drawn: Sequence[Drawn], question: Question) -> Drawn | None:
    """The best over the draws, of choices in their order without draws; None if there are none.

    A later one becomes the best only if it can be the answer and is ahead in most draws, by more than what is uncertain about it if nothing like it
    was measured. GPUs are whole numbers, which many draws have in common; there the fleets count, which have the size of the median.
    """
    if Measure.of(question) is Measure.GPUS:
        return min(drawn, key=lambda one: rank(question, one.choice, believed(question, one.choice)), default=None)
    best = next((one for one in drawn if not one.choice.refusal), next(iter(drawn), None))
    for one in drawn:
        if (
            best is not None
            and not one.choice.refusal
            and compared(one, best, question, _share(one, best, question)).better
        ):
            best = one
    return best


def _share(one: Drawn, other: Drawn, question: Question) -> float:
    return believed(question, one.choice) / believed(question, other.choice)


def verdict(drawn: Sequence[Drawn], question: Question) -> Verdict:
    """Compare the first plain choice with the first disaggregated one."""
    fixed = [each for each in drawn if not each.choice.adaptive]
    plain = next((each for each in fixed if each.choice.plain), None)
    apart = next((each for each in fixed if not each.choice.plain), None)
    if plain is None or apart is None:
        return Verdict(Outcome.ALONE, plain, apart, None)
    found = compared(apart, plain, question)
    counts = {Outcome.APART: found.ahead, Outcome.PLAIN: found.behind, Outcome.EQUAL: found.equal}
    sure = (outcome for outcome, count in counts.items() if count >= _SURE * found.draws)
    return Verdict(next(sure, Outcome.UNCLEAR), plain, apart, found)


def roles(drawn: Sequence[Drawn], question: Question) -> Comparison | None:
    """Adaptive roles against the first choice with fixed ones; None if one of them was not drawn."""
    adaptive = next((each for each in drawn if each.choice.adaptive), None)
    fixed = next((each for each in drawn if not each.choice.adaptive), None)
    return compared(adaptive, fixed, question) if adaptive and fixed else None
