"""The doubts of many loads in few sentences: a doubt about several loads appears once, with the loads it holds for."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.one_load import Case, weighed
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.load import MODES, SWEPT, Load
from pd_analysis.numbers.sweep import Axis, axis_of
from pd_analysis.words.formatting import clauses, joined, listed, setting, sizes
from pd_analysis.words.language import tr


def overall(groups: Sequence[Group], cases: Iterable[Case]) -> list[Doubt]:
    """Every doubt of every group, merged by kind, the most serious first."""
    kinds: dict[tuple[Level, str], list[Case]] = {}
    for case in cases:
        kinds.setdefault((case.doubt.level, case.doubt.general or case.doubt.sentence), []).append(case)
    everything = [result for group in groups for result in group.results]
    return weighed([*never_together(groups), *(_merged(alike, everything) for alike in kinds.values())])


def never_together(groups: Sequence[Group]) -> Iterable[Doubt]:
    """Deployments of which no two had the same load: the reader expects a comparison, and there is none."""
    loads = {result.label: group.workload for group in groups for result in group.results}
    if len(groups) < 2 or len(loads) < 2 or any(group.others or group.pace in MODES for group in groups):
        return
    each = clauses(tr("{run}: {workload}", run=label, workload=workload) for label, workload in loads.items())
    yield Doubt(
        Level.CARE,
        tr("No two deployments were offered the same load, so none is compared with another ({each}).", each=each),
        tr("Offer all of them the same load, then compare."),
    )


def _merged(cases: Sequence[Case], everything: Sequence[Result]) -> Doubt:
    first = cases[0].doubt
    results = list({id(result): result for case in cases for result in case.results}.values())
    if len(cases) == 1 or not first.general:
        return replace(first, places=_places(results, everything))
    return Doubt(
        level=first.level,
        sentence=tr("{what}.", what=first.general),
        remedy=max((case.doubt.remedy for case in cases), key=len),
        general=first.general,
        places=_places(results, everything),
        single=first.single,
    )


def _places(results: Sequence[Result], everything: Sequence[Result]) -> str:
    """Deployments, with the loads at which it holds and the size of the requests; as short as can be."""
    if len(results) == len(everything):
        return tr("every run")
    wanted = {id(result) for result in results}
    shapes: dict[Load, list[Result]] = {}
    for result in everything:
        shapes.setdefault(result.load.shape, []).append(result)
    return clauses(
        tr("{size}: {places}", size=_size(members), places=_within(members, wanted))
        for members in shapes.values()
        if any(id(member) in wanted for member in members)
    )


def _size(members: Sequence[Result]) -> str:
    return tr("{sizes} tokens", sizes=sizes(members[0].run.manifest.workload))


def _within(members: Sequence[Result], wanted: set[int]) -> str:
    """Deployments of one shape, each with the points at which it holds."""
    axis = axis_of(members) if members[0].load.pace in SWEPT else None
    labels: dict[str, list[Result]] = {}
    for member in members:
        labels.setdefault(member.label, []).append(member)
    found = {label: [result for result in own if id(result) in wanted] for label, own in labels.items()}
    if all(len(found[label]) == len(own) for label, own in labels.items()):
        return tr("every run")
    return joined(
        _at(label, chosen, axis, whole=len(chosen) == len(labels[label])) for label, chosen in found.items() if chosen
    )


def _at(label: str, chosen: Sequence[Result], axis: Axis | None, *, whole: bool) -> str:
    if whole or axis is None:
        return tr("{run} everywhere", run=label)
    places = sorted({place for result in chosen if (place := axis.place(result)) is not None})
    return tr("{run} at {places} {unit}", run=label, places=listed(map(setting, places)), unit=axis.unit)
