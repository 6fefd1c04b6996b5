"""What the numbers say, in sentences that are written from them; no winner where the difference is small."""

from collections.abc import Sequence
from dataclasses import dataclass

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers import bootstrap
from pd_analysis.numbers.evaluation import Group, Result, gpus
from pd_analysis.numbers.measures import DECIDING, SMALL, SMALL_TAIL, Comparison, compared
from pd_analysis.words.formatting import joined, listed, percent, ratio
from pd_analysis.words.language import mark, ntr, tr


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
    caveat = ntr(
        "A doubt above weighs more than these numbers: do not decide on them.",
        "{count} doubts above weigh more than these numbers: do not decide on them.",
        stops,
    )
    return Verdict(
        caveat=caveat if stops else "",
        setting=_setting(group),
        pairs=tuple(_pair(group.baseline, other) for other in group.others),
        rule=(
            tr(
                "Ratios within {small} (p99: {tail}) are called equal, and so are those whose {level} % interval holds 1. {noise}",
                small=percent(SMALL),
                tail=percent(SMALL_TAIL),
                level=f"{bootstrap.LEVEL:.0f}",
                noise=_noise(group),
            )
        ),
    )


def _noise(group: Group) -> str:
    """What the intervals rest on."""
    counts = sorted({len(result.runs) for result in group.results})
    if counts[0] > 1:
        return tr(
            "Intervals are bootstrapped over {counts} repeats with other seeds and over their requests.",
            counts=listed(map(str, counts)),
        )
    return tr(
        "Intervals are bootstrapped over requests; joules of a single run have none. Repeat with other seeds to have firmer ones."
    )


def _setting(group: Group) -> str:
    each = listed(tr("{run} on {gpus}", run=result.name, gpus=gpus(result)) for result in group.results)
    if not group.others:
        return tr(
            "{runs}: {workload}. One run has nothing to be compared with: offer the same schedule to the other topology.",
            runs=each,
            workload=group.workload,
        )
    return tr("{runs}, offered {workload}.", runs=each, workload=group.workload)


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
        return tr(
            "Nothing that decides between {baseline} and {other} was measured.",
            baseline=baseline.name,
            other=other.name,
        )
    ours = [_benefit(comparison) for comparison in known if comparison.winner is baseline]
    theirs = [_benefit(comparison) for comparison in known if comparison.winner is other]
    if not ours and not theirs:
        same = listed(comparison.measure.phrase for comparison in known)
        return tr(
            "{other} and {baseline} differ too little to call on {measures}.",
            other=other.name,
            baseline=baseline.name,
            measures=same,
        )
    if not ours or not theirs:
        better, worse, gives = (other, baseline, theirs) if theirs else (baseline, other, ours)
        return tr(
            "{better} gives {gives}; nothing that decides here speaks for {worse}.",
            better=better.name,
            gives=listed(gives),
            worse=worse.name,
        )
    return tr(
        "It depends on what you promise: {other} gives {theirs}; {baseline} gives {ours}.",
        other=other.name,
        theirs=listed(theirs),
        baseline=baseline.name,
        ours=listed(ours),
    )


def _benefit(comparison: Comparison) -> str:
    """What the winner gives, with the number that shows it."""
    measure = comparison.measure
    by = difference(comparison)
    what = tr("{measure} {difference}", measure=measure.phrase, difference=by) if by else measure.phrase
    return tr("{benefit} ({what})", benefit=tr(measure.benefit), what=what)


def difference(comparison: Comparison) -> str:
    """By what factor the winner is lower or higher; empty where one side is 0."""
    if not comparison.factor:
        return ""
    message = mark("{factor} lower") if comparison.measure.less_is_better else mark("{factor} higher")
    return tr(message, factor=ratio(comparison.factor))


def sentence(comparison: Comparison) -> str:
    """One finding: values, winner and factor, or that there is none."""
    measure, baseline, other = comparison.measure, comparison.baseline, comparison.other
    values = joined(f"{result.name} {measure.text(result)} {measure.unit}" for result in (baseline, other))
    if comparison.winner is None:
        return tr("{measure}: {values}; no difference to call.", measure=measure.title, values=values)
    winner, by = comparison.winner.name, difference(comparison)
    if not by:
        return tr("{measure}: {values}; {winner} is better.", measure=measure.title, values=values, winner=winner)
    return tr(
        "{measure}: {values}; {winner} is better, {difference}.",
        measure=measure.title,
        values=values,
        winner=winner,
        difference=by,
    )
