"""The verdict from the draws: plain engines against prefill and decode on separate GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pd_planner.confidence.draws import Drawn
from pd_planner.search.question import Choice, Objective

_SURE: Final = 0.9  # of the draws


class Outcome(StrEnum):
    """Which is ahead."""

    PLAIN = "plain"
    APART = "apart"
    UNCLEAR = "unclear"
    ALONE = "alone"  # there is nothing to compare with


@dataclass(frozen=True)
class Verdict:
    """The best plain choice against the best disaggregated one; `ahead` counts the draws in which the latter is better."""

    outcome: Outcome
    plain: Drawn | None
    apart: Drawn | None
    ahead: int
    draws: int
    objective: Objective

    @property
    def ratio(self) -> float:
        """Median of apart ÷ plain over the draws: capacity per GPU, or joules per token."""
        return _ratio(_pairs(self.plain, self.apart, self.objective))


@dataclass(frozen=True)
class Roles:
    """Adaptive roles against the best choice with fixed ones: in how many draws they are better, and the median of adaptive ÷ fixed."""

    adaptive: Drawn
    fixed: Drawn
    ahead: int
    draws: int
    ratio: float


def roles(drawn: Sequence[Drawn], best: Choice | None, objective: Objective) -> Roles | None:
    """Compare adaptive roles with `best` over the draws that both have; None if one of them was not drawn."""
    adaptive = next((each for each in drawn if each.choice.adaptive), None)
    fixed = next((each for each in drawn if each.choice is best), None)
    if adaptive is None or fixed is None:
        return None
    draws = len(adaptive.per_gpu)
    pairs = _pairs(fixed.first(draws), adaptive, objective)
    return Roles(adaptive, fixed, _ahead(pairs, objective), draws, _ratio(pairs))


def _ahead(pairs: Sequence[tuple[float, float]], objective: Objective) -> int:
    less_is_better = objective is Objective.ENERGY
    return sum((theirs < ours) if less_is_better else (theirs > ours) for ours, theirs in pairs)


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    ratios = sorted(theirs / ours for ours, theirs in pairs if ours > 0)
    return ratios[len(ratios) // 2] if ratios else float("nan")


def _pairs(plain: Drawn | None, apart: Drawn | None, objective: Objective) -> list[tuple[float, float]]:
    if plain is None or apart is None:
        return []
    if objective is Objective.ENERGY:
        return list(zip(plain.joules, apart.joules, strict=True))
    return list(zip(plain.per_gpu, apart.per_gpu, strict=True))


def verdict(drawn: Sequence[Drawn], objective: Objective) -> Verdict:
    """Compare the first plain choice with the first disaggregated one."""
    fixed = [each for each in drawn if not each.choice.adaptive]
    plain = next((each for each in fixed if each.choice.plain), None)
    apart = next((each for each in fixed if not each.choice.plain), None)
    pairs = _pairs(plain, apart, objective)
    if not pairs:
        return Verdict(Outcome.ALONE, plain, apart, 0, 0, objective)
    ahead = _ahead(pairs, objective)
    share = ahead / len(pairs)
    outcome = Outcome.APART if share >= _SURE else Outcome.PLAIN if share <= 1 - _SURE else Outcome.UNCLEAR
    return Verdict(outcome, plain, apart, ahead, len(pairs), objective)
