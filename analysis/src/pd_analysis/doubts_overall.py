"""The doubts of many loads in few sentences: what holds for several is said once, with the places where it does."""

from collections.abc import Iterable, Sequence

from pd_analysis import doubts
from pd_analysis.doubt import Doubt, Level
from pd_analysis.results import Group, Result
from pd_analysis.sweep import rate_per_gpu
from pd_analysis.texts import listed, setting


def overall(groups: Sequence[Group]) -> list[Doubt]:
    """Every doubt of every group, those of one kind together, the heaviest first."""
    kinds: dict[tuple[Level, str], list[tuple[Doubt, Sequence[Result]]]] = {}
    for doubt, results in _all(groups):
        kinds.setdefault((doubt.level, doubt.general or doubt.sentence), []).append((doubt, results))
    everything = [result for group in groups for result in group.results]
    merged = [_merged(cases, everything) for cases in kinds.values()]
    return sorted(merged, key=lambda doubt: doubt.level is not Level.STOP)


def _all(groups: Sequence[Group]) -> Iterable[tuple[Doubt, Sequence[Result]]]:
    for group in groups:
        for doubt in doubts.of_group(group):
            yield doubt, group.results
        for result in group.results:
            for doubt in doubts.of_result(result):
                yield doubt, (result,)


def _merged(cases: Sequence[tuple[Doubt, Sequence[Result]]], everything: Sequence[Result]) -> Doubt:
    first = cases[0][0]
    if len(cases) == 1 or not first.general:
        return first
    results = list({id(result): result for _, members in cases for result in members}.values())
    remedies = {doubt.remedy for doubt, _ in cases}
    return Doubt(
        level=first.level,
        sentence=f"{first.general}: {_places(results, everything)}.",
        remedy=first.remedy if len(remedies) == 1 else max(remedies, key=len),
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
        size = f"{load.input_tokens or 'any'} → {load.output_tokens or 'any'} tokens"
        cells.setdefault(size, {}).setdefault(result.label, set()).add(rate_per_gpu(result) or load.rate)
    return cells
