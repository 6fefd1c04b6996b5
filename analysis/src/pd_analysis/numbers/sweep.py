"""The same shape of requests at several rates: series of results, and where they cross."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from pd_analysis.energy.window import TokenEnergy
from pd_analysis.numbers.evaluation import Result, with_repeats_pooled, workload_words
from pd_analysis.words.formatting import setting
from pd_analysis.words.language import tr
from pd_contracts.names import Topology

ATTAINMENT: Final = 0.9  # the share of requests within all limits that a deployment must keep, as DistServe has it

Get = Callable[[Result], float | None]


@dataclass(frozen=True)
class Series:
    """One deployment over rising rates; `with_gpus` where another of the same label has another number of them."""

    results: tuple[Result, ...]
    with_gpus: bool = False

    @property
    def name(self) -> str:
        """What the deployment is called."""
        label = self.results[0].label
        return tr("{label} ({count} GPUs)", label=label, count=self.gpus) if self.with_gpus else label

    @property
    def gpus(self) -> int | None:
        """GPUs of the deployment."""
        return self.results[0].metrics.gpus

    @property
    def topology(self) -> Topology | None:
        """How the deployment uses its GPUs."""
        return self.results[0].topology

    def points(self, get: Get) -> list[tuple[float, float]]:
        """(rate per GPU, value) of every result that has the value."""
        found = [(rate_per_gpu(result), get(result)) for result in self.results]
        return [(x, y) for x, y in found if x is not None and y is not None]


@dataclass(frozen=True)
class Sweep:
    """Series over one shape of requests; the first is plain serving if it was measured."""

    series: tuple[Series, ...]

    @property
    def shape(self) -> str:
        """What was offered at all rates, in words."""
        return workload_words(self.series[0].results[0].run, with_rate=False)

    @property
    def simulated(self) -> bool:
        """True if a run in it is simulated."""
        return any(run.simulated for series in self.series for result in series.results for run in result.runs)

    @property
    def limits(self) -> dict[str, float]:
        """The goodput limits."""
        return self.series[0].results[0].run.manifest.workload.goodput


def rate_per_gpu(result: Result) -> float | None:
    """What was offered to each GPU, requests a second; None without GPUs or with everything offered at once."""
    rate, gpus = result.run.manifest.workload.rate, result.metrics.gpus
    return rate / gpus if gpus and np.isfinite(rate) else None


def sweeps(results: Sequence[Result]) -> list[Sweep]:
    """One a shape that some deployment was offered at two rates or more; its deployments with a single rate are points in it."""
    shapes: dict[str, dict[Hashable, list[Result]]] = {}
    for result in with_repeats_pooled(results):
        if rate_per_gpu(result) is not None:
            series = shapes.setdefault(workload_words(result.run, with_rate=False), {})
            series.setdefault((result.label, result.metrics.gpus), []).append(result)
    found = [Sweep(series=_named(series)) for series in shapes.values()]
    return [sweep for sweep in found if any(len(set(series.points(_rate))) > 1 for series in sweep.series)]


def _rate(result: Result) -> float:
    return result.run.manifest.workload.rate


def _named(cells: dict[Hashable, list[Result]]) -> tuple[Series, ...]:
    ordered = [tuple(sorted(members, key=_rate)) for members in cells.values()]
    ordered.sort(key=lambda members: (members[0].topology is not Topology.COMBINED, members[0].label))
    labels = [members[0].label for members in ordered]
    return tuple(Series(results=members, with_gpus=labels.count(members[0].label) > 1) for members in ordered)


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """The largest x up to which y stays at `level` or above, between measured points by a straight line; None if it starts below.

    Where y never falls below, it is the last x: more was not measured.
    """
    if not points or points[0][1] < level:
        return None
    for (x, y), (further, lower) in pairwise(points):
        if lower < level:
            return x + (further - x) * (y - level) / (y - lower)
    return points[-1][0]


def break_even(one: Sequence[tuple[float, float]], two: Sequence[tuple[float, float]]) -> list[float]:
    """Every x at which the two curves cross, by straight lines between measured points, where both were measured."""
    if len(one) < 2 or len(two) < 2:
        return []
    low, high = max(one[0][0], two[0][0]), min(one[-1][0], two[-1][0])
    xs = sorted({x for x, _ in (*one, *two) if low <= x <= high} | ({low, high} if low < high else set()))
    gaps = [float(np.interp(x, *_axes(one)) - np.interp(x, *_axes(two))) for x in xs]
    return [
        x + (further - x) * gap / (gap - later)
        for (x, further), (gap, later) in zip(pairwise(xs), pairwise(gaps), strict=True)
        if gap * later < 0
    ]


def _axes(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def best_rate(series: Series) -> float | None:
    """The highest rate per GPU at which `ATTAINMENT` of the requests still meet all limits."""
    return crossing(series.points(lambda result: result.metrics.attainment), ATTAINMENT)


def beyond(series: Series) -> bool:
    """True if the deployment met the limits at every rate that was offered, so that its best rate is higher still."""
    points = series.points(lambda result: result.metrics.attainment)
    return bool(points) and all(share >= ATTAINMENT for _, share in points)


def joules(part: Callable[[TokenEnergy], float | None]) -> Get:
    """A number of a result's energy a token."""
    return lambda result: part(result.tokens) if result.tokens else None


def label_of(result: Result) -> str:
    """A point's rate, for the plots."""
    return f"{setting(result.run.manifest.workload.rate)}/s"
