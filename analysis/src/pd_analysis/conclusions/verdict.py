"""What the numbers say, in sentences that are written from them; no winner where the difference is small."""

from collections.abc import Sequence
from dataclasses import dataclass

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers import bootstrap
from pd_analysis.numbers.evaluation import Group, Result, gpus
from pd_analysis.numbers.measures import DECIDING, SMALL, SMALL_TAIL, Comparison, compared
from pd_analysis.words.formatting import listed, percent, ratio


@dataclass(frozen=True)
class Pair:
    """The verdict over two runs.

    Attributes:
        lead: which to choose for what, in one sentence.
        comparisons: of the measures that decide, those that both runs have.
        unknown: titles of the others.
    """

    baseline: Result
    other: Result
    lead: str
    comparisons: tuple[Comparison, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What a group says.

    Attributes:
        caveat: why not to act on it, or "".
        setting: what was compared.
        rule: what counts as a difference.
    """

    caveat: str
    setting: str
    pairs: tuple[Pair, ...]
    rule: str


def verdict(group: Group, doubts: Sequence[Doubt]) -> Verdict:
    """Compare every run of a group with its baseline."""
    stops = sum(doubt.level is Level.STOP for doubt in doubts)
    heavy = "A doubt above weighs" if stops == 1 else f"{stops} doubts above weigh"
    return Verdict(
        caveat=f"{heavy} more than these numbers: do not decide on them." if stops else "",
        setting=_setting(group),
        pairs=tuple(_pair(group.baseline, other) for other in group.others),
        rule=(
            f"Ratios within {percent(SMALL)} (p99: {percent(SMALL_TAIL)}) are called equal, and so are those whose "
            f"{bootstrap.LEVEL:.0f} % interval holds 1. {_noise(group)}"
        ),
    )


def _noise(group: Group) -> str:
    """What the intervals rest on."""
    counts = sorted({len(result.runs) for result in group.results})
    if counts[0] > 1:
        return f"Intervals are bootstrapped over {listed(map(str, counts))} repeats with other seeds and over their requests."
    return "Intervals are bootstrapped over requests; joules of a single run have none. Repeat with other seeds to have firmer ones."


def _setting(group: Group) -> str:
    each = listed(f"{result.name} on {gpus(result)}" for result in group.results)
    if not group.others:
        return f"{each}: {group.workload}. One run has nothing to be compared with: offer the same schedule to the other topology."
    return f"{each}, offered {group.workload}."


def _pair(baseline: Result, other: Result) -> Pair:
    every = [compared(measure, baseline, other) for measure in DECIDING]
    known = tuple(comparison for comparison in every if comparison.known)
    return Pair(
        baseline=baseline,
        other=other,
        lead=_lead(baseline, other, known),
        comparisons=known,
        unknown=tuple(comparison.measure.title for comparison in every if not comparison.known),
    )


def _lead(baseline: Result, other: Result, known: Sequence[Comparison]) -> str:
    if not known:
        return f"Nothing that decides between {baseline.name} and {other.name} was measured."
    ours = [_benefit(comparison) for comparison in known if comparison.winner is baseline]
    theirs = [_benefit(comparison) for comparison in known if comparison.winner is other]
    if not ours and not theirs:
        same = listed(comparison.measure.phrase for comparison in known)
        return f"{other.name} and {baseline.name} differ too little to call on {same}."
    if not ours or not theirs:
        better, worse, gives = (other, baseline, theirs) if theirs else (baseline, other, ours)
        return f"{better.name} gives {listed(gives)}; nothing that decides here speaks for {worse.name}."
    return f"It depends on what you promise: {other.name} gives {listed(theirs)}; {baseline.name} gives {listed(ours)}."


def _benefit(comparison: Comparison) -> str:
    """What the winner gives, with the number that shows it."""
    measure = comparison.measure
    return f"{measure.benefit} ({measure.phrase}{difference(comparison)})"


def difference(comparison: Comparison) -> str:
    """By what factor the winner is lower or higher; empty where one side is 0."""
    direction = "lower" if comparison.measure.less_is_better else "higher"
    return f" {ratio(comparison.factor)} {direction}" if comparison.factor else ""


def sentence(comparison: Comparison) -> str:
    """One finding: values, winner and factor, or that there is none."""
    measure, baseline, other = comparison.measure, comparison.baseline, comparison.other
    values = (
        f"{baseline.name} {measure.text(baseline)} {measure.unit}, {other.name} {measure.text(other)} {measure.unit}"
    )
    if comparison.winner is None:
        return f"{measure.title}: {values}; no difference to call."
    by = difference(comparison)
    return f"{measure.title}: {values}; {comparison.winner.name} is better{',' if by else ''}{by}."
