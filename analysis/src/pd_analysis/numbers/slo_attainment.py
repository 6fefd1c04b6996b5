"""Attainment under limits other than the given ones, from the measured latencies."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.records.columns import Floats, meeting
from pd_contracts.latency import PERCENTILES

_STEPS: Final = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # round numbers in a decade
_MOST: Final = 5  # limits along each side of the table


def attainment(result: Result, limits_ms: Mapping[str, float], scale: float = 1.0) -> float:
    """Share of all measured requests that meet every limit times `scale`; failures never do."""
    met = meeting(result.requests.measured, limits_ms, scale)
    return float(met.mean()) if met.size else 0.0


def scales(group: Group, limits_ms: Mapping[str, float], count: int = 60) -> Floats:
    """Factors of the limits, from where no request meets them to where nearly all do."""
    ratios = [
        result.requests.ordered(name)[[0, int(0.995 * (size - 1))]] * 1e3 / limit
        for result in group.results
        for name, limit in limits_ms.items()
        if (size := result.requests.ordered(name).size)
    ]
    if not ratios:
        return np.empty(0)
    low = min(float(pair[0]) for pair in ratios)
    high = max(float(pair[1]) for pair in ratios)
    return np.geomspace(max(low * 0.9, 1e-3), max(high * 1.1, 1.3), count)


def round_limits(group: Group, name: str) -> list[float]:
    """A few round limits in ms over the range in which the runs differ: from the least median to the largest p99."""
    spread = [
        (latencies.at(PERCENTILES[0]), latencies.at(PERCENTILES[-1]))
        for result in group.results
        if (latencies := result.metrics.latencies[name]).count
    ]
    if not spread:
        return []
    low, high = min(p50 or 0.0 for p50, _ in spread) * 1e3, max(p99 or 0.0 for _, p99 in spread) * 1e3
    if low <= 0:
        return []
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    every = [float(f"{step * 10.0**decade:.2g}") for decade in decades for step in _STEPS]
    inside = [limit for limit in every if low * 0.9 <= limit <= high * 1.25]
    if len(inside) < 2:
        inside = [limit * low for limit in (0.95, 1.0, 1.05, 1.1, 1.2)]
        inside = [float(f"{limit:.3g}") for limit in inside]
    return _thinned(inside)


def _thinned(limits: Sequence[float]) -> list[float]:
    chosen = np.unique(np.linspace(0, len(limits) - 1, min(_MOST, len(limits))).round().astype(int))
    return [limits[int(position)] for position in chosen]
