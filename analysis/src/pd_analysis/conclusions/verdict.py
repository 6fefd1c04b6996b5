"""The verdict in sentences, generated from the numbers; no winner is named if the difference is small."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers import bootstrap
from pd_analysis.numbers.comparison import ENOUGH_TO_DECIDE, OUTCOMES, Bar, Comparison, Outcome, bar, compared
from pd_analysis.numbers.evaluation import Group, Result, gpus
from pd_analysis.numbers.measures import DECIDING, SMALL, SMALL_TAIL
from pd_analysis.words.formatting import joined, listed, percent, ratio, sentences
from pd_analysis.words.language import mark, ntr, tr


@dataclass(frozen=True)
class Pair:
    """The verdict over two runs.

    Attributes:
        lead: which to choose for what, in a sentence or two.
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
        "A doubt above is more serious than these numbers: do not base a decision on them.",
        "{count} doubts above are more serious than these numbers: do not base a decision on them.",
        stops,
    )
    return Verdict(
        caveat=caveat if stops else "",
        setting=_setting(group),
        pairs=tuple(_pair(group.baseline, other) for other in group.others),
        rule=(
            tr(
                "Equal: the whole {level}% interval of the difference is below {small} (p99: {tail}). Unclear: the interval includes both no difference and a larger one. {noise}",
                small=percent(SMALL),
                tail=percent(SMALL_TAIL),
                level=f"{bootstrap.LEVEL:.0f}",
                noise=_noise(group),
            )
        ),
    )


def _noise(group: Group) -> str:
    counts = sorted({len(result.runs) for result in group.results})
    if counts[0] > 1:
        return tr(
            "Intervals are bootstrapped over {counts} repeats with other seeds and over their requests.",
            counts=listed(map(str, counts)),
        )
    return tr(
        "Intervals are bootstrapped over requests; the energy of a single run has none. Repeat the run with other seeds for firmer intervals."
    )


def _setting(group: Group) -> str:
    each = listed(tr("{run} on {gpus}", run=result.name, gpus=gpus(result)) for result in group.results)
    if not group.others:
        return tr(
            "{runs}: {workload}. Nothing else was offered this load, so there is nothing to compare: offer the same schedule to another deployment.",
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


_BARRED: Final = {
    Bar.UNFIT: mark("a run cannot be trusted, as the doubts say"),
    Bar.LOADS: mark("they were not offered the same load"),
    Bar.SCHEDULES: mark("they were offered different schedules"),
    Bar.MODELS: mark("they serve different models"),
    Bar.FEW: mark("fewer than {least} requests were measured; measure for longer"),
}


def _lead(baseline: Result, other: Result, known: Sequence[Comparison]) -> str:
    pair = {"baseline": baseline.name, "other": other.name}
    if not known:
        return tr("None of the deciding measures was recorded for both {baseline} and {other}.", **pair)
    barred = bar(baseline, other)
    if barred is not None:
        return tr(
            "No winner is named between {baseline} and {other}: {reason}.",
            **pair,
            reason=tr(_BARRED[barred], least=ENOUGH_TO_DECIDE),
        )
    found = [text for text in (_choice(baseline, other, known), _rest(known)) if text]
    return sentences(found)


def _choice(baseline: Result, other: Result, known: Sequence[Comparison]) -> str:
    ours, theirs = _benefits(known, baseline), _benefits(known, other)
    if not ours and not theirs:
        return tr(
            "Neither {baseline} nor {other} is better in any deciding measure.",
            baseline=baseline.name,
            other=other.name,
        )
    if not ours or not theirs:
        better, worse, gives = (other, baseline, theirs) if theirs else (baseline, other, ours)
        return tr(
            "{better} gives {gives}; {worse} is better in none of the deciding measures.",
            better=better.name,
            gives=listed(gives),
            worse=worse.name,
        )
    return tr(
        "The choice depends on your goal: {other} gives {theirs}; {baseline} gives {ours}.",
        other=other.name,
        theirs=listed(theirs),
        baseline=baseline.name,
        ours=listed(ours),
    )


def _benefits(known: Sequence[Comparison], winner: Result) -> list[str]:
    """What a run is better in, each kind of latency once, with the numbers that show it."""
    won: dict[str, list[Comparison]] = {}
    for comparison in known:
        if comparison.winner is winner:
            won.setdefault(comparison.measure.name, []).append(comparison)
    return [
        tr("{benefit} ({what})", benefit=tr(first.measure.benefit), what=joined(map(_values, (first, *more))))
        for first, *more in won.values()
    ]


def _values(comparison: Comparison) -> str:
    measure, winner, loser = comparison.measure, comparison.winner, comparison.loser
    if winner is None or loser is None:
        return measure.phrase
    return tr(
        "{measure} {winner} against {loser} {unit}",
        measure=measure.phrase,
        winner=measure.text(winner),
        loser=measure.text(loser),
        unit=measure.unit,
    )


def _rest(known: Sequence[Comparison]) -> str:
    """The measures that do not decide; without this, a reader would take those not named for equal."""
    equal = [each.measure.phrase for each in known if each.outcome is Outcome.EQUAL]
    unclear = [each.measure.phrase for each in known if each.outcome is Outcome.UNCLEAR and each.bar is None]
    apart = [each.measure.phrase for each in known if each.bar is Bar.METHODS]
    said = [tr("Equal: {measures}.", measures=joined(equal))] if equal else []
    if unclear:
        said.append(tr("Still unclear; measure for longer or with more seeds: {measures}.", measures=joined(unclear)))
    if apart:
        said.append(
            tr(
                "Not comparable, because one is from the energy counter and the other the integral of power: {measures}.",
                measures=joined(apart),
            )
        )
    if limits := [each.measure.phrase for each in known if each.bar is Bar.LIMITS]:
        said.append(tr("Not comparable, because their limits differ: {measures}.", measures=joined(limits)))
    return sentences(said)


def difference(comparison: Comparison) -> str:
    """By how much the winner is lower or higher; empty if one side is 0."""
    factor = comparison.factor
    if not factor:
        return ""
    if comparison.measure.less_is_better:
        return tr("{share} lower", share=percent(1 - 1 / factor))
    if factor < _TWICE:
        return tr("{share} higher", share=percent(factor - 1))
    return tr("{factor} as high", factor=ratio(factor))


_TWICE: Final = 2.0  # from here on a factor says more than a percentage


def sentence(comparison: Comparison) -> str:
    """One finding: values, winner and difference, or that there is none."""
    measure, baseline, other = comparison.measure, comparison.baseline, comparison.other
    values = joined(f"{result.name} {measure.text(result)} {measure.unit}" for result in (baseline, other))
    if comparison.winner is None:
        outcome = tr("not comparable") if comparison.bar is not None else tr(OUTCOMES[comparison.outcome])
        return tr("{measure}: {values}; {outcome}.", measure=measure.title, values=values, outcome=outcome)
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
