"""The doubts of many loads in few sentences: what holds for several is said once, with the places where it does."""

from collections.abc import Iterable, Sequence

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.one_load import Case, weighed
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.sweep import rate_per_gpu
from pd_analysis.words.formatting import listed, setting, sizes


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
        sentence=f"{first.general}: {_places(results, everything)}.",
        remedy=max((case.doubt.remedy for case in cases), key=len),
        general=first.general,
    )


def _places(results: Sequence[Result], everything: Sequence[Result]) -> str:
    """Deployments, with the rates at which it holds and the size of the requests; as short as can be."""
    if len(results) == len(everything):
        return "every run"
    offered, found = _cells(everything), _cells(results)
    sizes = []
    for size, labels in found.items():
        if labels == offered[size]:
            sizes.append(f"{size}: every run")
            continue
        each = [
            f"{label} at {'every rate' if rates == offered[size][label] else listed(map(setting, sorted(rates)))}"
            for label, rates in labels.items()
        ]
        sizes.append(f"{size}: {', '.join(each)}{'' if _only_words(each) else ' req/s per GPU'}")
    return "; ".join(sizes)


def _only_words(places: Sequence[str]) -> bool:
    return all(place.endswith("every rate") for place in places)


def _cells(results: Sequence[Result]) -> dict[str, dict[str, set[float]]]:
    """Size of the requests, then deployment, to rates per GPU."""
    cells: dict[str, dict[str, set[float]]] = {}
    for result in results:
        load = result.run.manifest.workload
        size = f"{sizes(load)} tokens"
        cells.setdefault(size, {}).setdefault(result.label, set()).add(rate_per_gpu(result) or load.rate)
    return cells
