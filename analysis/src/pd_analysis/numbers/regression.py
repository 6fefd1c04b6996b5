"""Whether a run is worse than a reference run, for a CI pipeline that must fail then."""

from collections.abc import Sequence
from dataclasses import dataclass

from pd_analysis.numbers.comparison import Comparison, bar, compared
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import Load
from pd_analysis.numbers.measures import DECIDING
from pd_analysis.words.formatting import percent, ratio
from pd_analysis.words.language import tr


@dataclass(frozen=True)
class Checked:
    """What was compared with the baseline.

    Attributes:
        worse: measures that are worse beyond noise and tolerance.
        unmatched: results of which the baseline has no run on the same deployment under the same load.
        barred: results that have such a run but must not be compared with it (`comparison.Bar`).
    """

    worse: tuple[Comparison, ...]
    unmatched: tuple[Result, ...]
    barred: tuple[Result, ...]
    compared: int


def check(results: Sequence[Result], baseline: Sequence[Result], tolerance: float) -> Checked:
    """Compare every deciding number of each result with the baseline's run of the same label, GPUs and load."""
    known = {_key(result): result for result in baseline}
    pairs = [(known[_key(result)], result) for result in results if _key(result) in known]
    fair = [(before, now) for before, now in pairs if bar(before, now) is None]
    comparisons = [compared(measure, before, now) for before, now in fair for measure in DECIDING]
    worse = [each for each in comparisons if each.winner is each.baseline and _beyond(each, tolerance)]
    return Checked(
        worse=tuple(worse),
        unmatched=tuple(result for result in results if _key(result) not in known),
        barred=tuple(now for before, now in pairs if bar(before, now) is not None),
        compared=sum(comparison.known for comparison in comparisons),
    )


def sentence(comparison: Comparison) -> str:
    """What became worse, and by how much."""
    measure, before, now = comparison.measure, comparison.baseline, comparison.other
    factor = f" ({ratio(comparison.ratio)})" if comparison.ratio is not None else ""
    return tr(
        "{run}: {measure} is {now} {unit}, was {before} {unit}{factor}",
        run=now.name,
        measure=measure.title,
        now=measure.text(now),
        before=measure.text(before),
        unit=measure.unit,
        factor=factor,
    )


def summary(checked: Checked, tolerance: float) -> str:
    holes = {"worse": len(checked.worse), "compared": checked.compared, "tolerance": percent(tolerance)}
    if checked.worse:
        return tr("{worse} of {compared} numbers are worse by more than {tolerance} and the noise.", **holes)
    return tr("None of {compared} numbers is worse by more than {tolerance} and the noise.", **holes)


def _beyond(comparison: Comparison, tolerance: float) -> bool:
    return comparison.factor is None or comparison.factor > 1 + tolerance


def _key(result: Result) -> tuple[str, int | None, Load]:
    return result.label, result.metrics.gpus, result.load
