"""The same shape of requests at several rates, or with several numbers of requests in flight: series of results, and where they cross."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from pd_analysis.energy.joules import TokenEnergy
from pd_analysis.numbers.evaluation import Result, with_repeats_pooled
from pd_analysis.numbers.load import SWEPT, Pace, lengths, words
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Topology

ATTAINMENT: Final = 0.9  # share of requests that must meet all limits, as in DistServe

Get = Callable[[Result], float | None]


_AXES: Final = {
    (Pace.RATE, True): (mark("Requests per second per GPU"), mark("req/s per GPU")),
    (Pace.RATE, False): (mark("Requests per second"), mark("req/s")),
    (Pace.IN_FLIGHT, True): (mark("Requests in flight per GPU"), mark("in flight per GPU")),
    (Pace.IN_FLIGHT, False): (mark("Requests in flight"), mark("in flight")),
}


@dataclass(frozen=True)
class Axis:
    """The x axis of a curve: the offered load, per GPU if the number of GPUs is known."""

    pace: Pace
    per_gpu: bool

    def place(self, result: Result) -> float | None:
        """A result's place on the axis; None if its load has another pace, or its GPUs are unknown."""
        load, gpus = result.load, result.metrics.gpus
        if load.pace is not self.pace:
            return None
        if not self.per_gpu:
            return load.amount
        return load.amount / gpus if gpus else None

    @property
    def label(self) -> str:
        """The axis label in a figure."""
        return tr(_AXES[self.pace, self.per_gpu][0])

    @property
    def unit(self) -> str:
        """The unit behind a number on the axis."""
        return tr(_AXES[self.pace, self.per_gpu][1])

    @property
    def heading(self) -> str:
        """The heading of a chapter about this axis."""
        return tr("Over rates") if self.pace is Pace.RATE else tr("Over requests in flight")

    def share(self, result: Result, value: float | None) -> float | None:
        """A rate of the deployment as shown on this axis: per GPU, or in all."""
        return result.metrics.per_gpu(value) if self.per_gpu else value


@dataclass(frozen=True)
class Series:
    """One deployment along an axis; `with_gpus` where another of the same label has another number of them."""

    results: tuple[Result, ...]
    axis: Axis
    with_gpus: bool = False

    @property
    def name(self) -> str:
        """The deployment's name."""
        label = self.results[0].label
        return tr("{label} ({count} GPUs)", label=label, count=self.gpus) if self.with_gpus else label

    @property
    def gpus(self) -> int | None:
        return self.results[0].metrics.gpus

    @property
    def plain(self) -> bool:
        """True for plain vLLM, see `Result.plain`."""
        return self.results[0].plain

    def points(self, get: Get) -> list[tuple[float, float]]:
        """(place on the axis, value) of every result that has the value and is fit for a decision."""
        return self._points([result for result in self.results if not result.unfit], get)

    def unfit_points(self, get: Get) -> list[tuple[float, float]]:
        """The same for results that are unfit for a decision."""
        return self._points([result for result in self.results if result.unfit], get)

    def _points(self, results: Sequence[Result], get: Get) -> list[tuple[float, float]]:
        found = [(self.axis.place(result), get(result)) for result in results]
        return [(x, y) for x, y in found if x is not None and y is not None]


@dataclass(frozen=True)
class Sweep:
    """Series over one shape of requests; the first is plain serving if it was measured."""

    series: tuple[Series, ...]
    axis: Axis

    @property
    def shape(self) -> str:
        """What was offered at all points, in words."""
        return words(self.series[0].results[0].run.manifest.workload, with_amount=False)

    @property
    def simulated(self) -> bool:
        """True if a run in it is simulated."""
        return any(run.simulated for series in self.series for result in series.results for run in result.runs)

    @property
    def limits(self) -> dict[str, float]:
        return self.series[0].results[0].run.manifest.workload.goodput


def axis_of(results: Sequence[Result]) -> Axis:
    """The axis of results with one pace: per GPU only if all say how many they have."""
    return Axis(results[0].load.pace, per_gpu=all(result.metrics.gpus for result in results))


def sweeps(results: Sequence[Result]) -> list[Sweep]:
    """One sweep per shape of load for which some deployment has two amounts or more; a deployment with a single amount is one point in it.

    The shortest requests come first. Curves with other limits are not drawn together: what carries more under wider limits may carry less.
    """
    shapes: dict[Hashable, list[Result]] = {}
    for result in with_repeats_pooled(results):
        if result.load.pace in SWEPT and result.load.amount > 0:
            limits = tuple(sorted(result.run.manifest.workload.goodput.items()))
            shapes.setdefault((result.load.shape, limits), []).append(result)
    found = [_sweep(members) for members in sorted(shapes.values(), key=lambda members: lengths(members[0].load))]
    return [sweep for sweep in found if any(len({x for x, _ in s.points(_amount)}) > 1 for s in sweep.series)]


def _amount(result: Result) -> float:
    return result.load.amount


def _sweep(members: Sequence[Result]) -> Sweep:
    axis = axis_of(members)
    cells: dict[Hashable, list[Result]] = {}
    for result in members:
        cells.setdefault((result.label, result.metrics.gpus), []).append(result)
    ordered = [tuple(sorted(cell, key=_amount)) for cell in cells.values()]
    ordered.sort(key=lambda cell: (cell[0].topology is not Topology.COMBINED, cell[0].manner, cell[0].label))
    labels = [cell[0].label for cell in ordered]
    series = (Series(results=cell, axis=axis, with_gpus=labels.count(cell[0].label) > 1) for cell in ordered)
    return Sweep(series=tuple(series), axis=axis)


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """The largest x up to which y stays at `level` or above, between measured points by a straight line; None if it starts below.

    If y never falls below, it is the last measured x.
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
    gaps = [float(np.interp(x, *xy(one)) - np.interp(x, *xy(two))) for x in xs]
    return [
        x + (further - x) * gap / (gap - later)
        for (x, further), (gap, later) in zip(pairwise(xs), pairwise(gaps), strict=True)
        if gap * later < 0
    ]


def xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as the values of either axis."""
    return [x for x, _ in points], [y for _, y in points]


def best_rate(series: Series) -> float | None:
    """The highest load at which `ATTAINMENT` of the requests still meet all limits."""
    return crossing(series.points(lambda result: result.metrics.attainment), ATTAINMENT)


def beyond(series: Series) -> bool:
    """True if the deployment met the limits at every measured point, so its highest load is beyond them."""
    points = series.points(lambda result: result.metrics.attainment)
    return bool(points) and all(share >= ATTAINMENT for _, share in points)


def piled_up(series: Series) -> float | None:
    """The lowest load at which the limits were met while requests piled up; results from there on hold only for the measured duration."""
    best = best_rate(series) or 0.0
    grew = [
        place
        for result in series.results
        if not result.unfit and (place := series.axis.place(result)) is not None and place <= best
        if series.axis.pace is Pace.RATE and steadiness(result).saturated
    ]
    return min(grew, default=None)


def joules(part: Callable[[TokenEnergy], float | None]) -> Get:
    """Joules per token of a result."""
    return lambda result: part(result.tokens) if result.tokens else None
