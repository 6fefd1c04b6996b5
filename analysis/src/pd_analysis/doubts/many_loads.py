"""The doubts of many loads in few sentences: what holds for several is said once, with the places where it does."""

from collections.abc import Iterable, Sequence

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.one_load import Case, weighed
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.sweep import rate_per_gpu
from pd_analysis.words.formatting import clauses, joined, listed, setting, sizes
from pd_analysis.words.language import mark, tr


def overall(groups: Sequence[Group], cases: Iterable[Case]) -> list[Doubt]:
    """Every doubt of every group, those of one kind together, the heaviest first."""
    kinds: dict[tuple[Level, str], list[Case]] = {}
    for case in cases:
        kinds.setdefault((case.doubt.level, case.doubt.general or case.doubt.sentence), []).append(case)
    everything = [result for group in groups for result in group.results]
    return weighed(_merged(alike, everything) for alike in kinds.values())


def _merged(cases: Sequence[Case], everything: Sequence[Result]) -> Doubt:
    first = cases[0].doubt
    if len(cases) == 1 or not first.general:
        return first
    results = list({id(result): result for case in cases for result in case.results}.values())
    return Doubt(
        level=first.level,
        sentence=tr("{sentence}: {places}.", sentence=first.general, places=_places(results, everything)),
        remedy=max((case.doubt.remedy for case in cases), key=len),
        general=first.general,
    )


def _places(results: Sequence[Result], everything: Sequence[Result]) -> str:
    """Deployments, with the rates at which it holds and the size of the requests; as short as can be."""
    if len(results) == len(everything):
        return tr("every run")
    offered, found = _cells(everything), _cells(results)
    sizes = []
    for size, labels in found.items():
        if labels == offered[size]:
            sizes.append(tr("{size}: {places}", size=size, places=tr("every run")))
            continue
        places = joined(_at(label, rates, offered[size][label]) for label, rates in labels.items())
        words = all(rates == offered[size][label] for label, rates in labels.items())
        message = mark("{size}: {places}") if words else mark("{size}: {places} req/s per GPU")
        sizes.append(tr(message, size=size, places=places))
    return clauses(sizes)


def _at(label: str, rates: set[float], offered: set[float]) -> str:
    if rates == offered:
        return tr("{run} at every rate", run=label)
    return tr("{run} at {rates}", run=label, rates=listed(map(setting, sorted(rates))))


def _cells(results: Sequence[Result]) -> dict[str, dict[str, set[float]]]:
    """Size of the requests, then deployment, to rates per GPU."""
    cells: dict[str, dict[str, set[float]]] = {}
    for result in results:
        load = result.run.manifest.workload
        size = tr("{sizes} tokens", sizes=sizes(load))
        cells.setdefault(size, {}).setdefault(result.label, set()).add(rate_per_gpu(result) or load.rate)
    return cells
