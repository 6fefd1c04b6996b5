"""Which loads of many are worth a chapter of their own."""

from collections.abc import Hashable, Sequence
from typing import Final

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.sweep import ATTAINMENT

SHOWN: Final = 6  # loads up to which each has its chapter


def telling(groups: Sequence[Group]) -> list[Group]:
    """All of few groups; of many, for each size of requests and number of GPUs the load that asks most while plain serving keeps its limits.

    Below that load deployments hardly differ, and above it latencies depend on how long was measured. Where no load is kept, or no limits
    were given, it is the lowest.
    """
    if len(groups) <= SHOWN:
        return list(groups)
    shapes: dict[Hashable, list[Group]] = {}
    for group in groups:
        load = group.baseline.run.manifest.workload
        shape = (load.input_tokens, load.output_tokens, load.dataset, load.endpoint, group.baseline.metrics.gpus)
        shapes.setdefault(shape, []).append(group)
    return [_most(sorted(members, key=_rate)) for members in shapes.values()]


def _most(rising: list[Group]) -> Group:
    compared = [group for group in rising if group.others] or rising
    kept = [group for group in compared if (group.baseline.metrics.attainment or 0.0) >= ATTAINMENT]
    return kept[-1] if kept else compared[0]


def _rate(group: Group) -> float:
    return group.baseline.run.manifest.workload.rate
