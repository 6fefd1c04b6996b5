"""Which of many loads get a chapter of their own."""

from collections.abc import Hashable, Sequence
from typing import Final

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.load import SWEPT
from pd_analysis.numbers.sweep import ATTAINMENT

SHOWN: Final = 6  # up to this number of loads, each has its chapter


def with_chapter(groups: Sequence[Group]) -> list[Group]:
    """All groups if there are few. Else one for each size of requests and number of GPUs: the highest load at which plain serving meets the limits.

    Below that load deployments hardly differ, and above it latencies depend on the duration of the run. If no load is within the limits,
    or no limits were given, it is the lowest load. The same holds for curves on which nothing is compared.
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
