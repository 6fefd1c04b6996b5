"""Which loads of many are worth a chapter of their own."""

from collections.abc import Hashable, Sequence
from typing import Final

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.load import SWEPT
from pd_analysis.numbers.sweep import ATTAINMENT

SHOWN: Final = 6  # loads up to which each has its chapter


def telling(groups: Sequence[Group]) -> list[Group]:
    """All of few groups; of many, and of curves on which nothing is compared, for each size of requests and number of GPUs the load that asks most while plain serving keeps its limits.

    Below that load deployments hardly differ, and above it latencies depend on how long was measured. Where no load is kept, or no limits
    were given, it is the lowest.
    """
    curves_only = len(groups) > 1 and not any(group.others or group.pace not in SWEPT for group in groups)
    if len(groups) <= SHOWN and not curves_only:
        return list(groups)
    shapes: dict[Hashable, list[Group]] = {}
    for group in groups:
        shapes.setdefault((group.baseline.load.shape, group.baseline.metrics.gpus), []).append(group)
    return [_most(sorted(members, key=_amount)) for members in shapes.values()]


def _most(rising: list[Group]) -> Group:
    compared = [group for group in rising if group.others] or rising
    kept = [group for group in compared if (group.baseline.metrics.attainment or 0.0) >= ATTAINMENT]
    return kept[-1] if kept else compared[0]


def _amount(group: Group) -> float:
    return group.baseline.load.amount
