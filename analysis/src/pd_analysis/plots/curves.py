"""Latency over percentiles, stretched towards the tail: half of the plot is the slowest tenth of requests, because limits are missed there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import MOST
from pd_analysis.records.columns import Floats, Gaps, quantiles
from pd_analysis.words.formatting import joined, ms, setting
from pd_analysis.words.language import mark, tr

_TICKS: Final = (0, 50, 75, 90, 95, 99, 99.9)
_MARKED: Final = (50, 90, 99)
_END: Final = 99.9
_POINTS: Final = 240
_LABELLED_RUNS: Final = 2  # with more runs the labels would overlap; the tables have the values
_LOG_FROM: Final = 25.0  # spread, p99 over p50 of all runs, from which the axis is logarithmic

Values = Callable[[Result], Floats | Gaps]


@dataclass(frozen=True)
class Curve:
    """What a panel shows: `key` is a name of `latency.FORMULAS`, `limit` the key of its goodput limit."""

    key: str
    label: str
    values: Values
    limit: str = ""


def _column(name: str) -> Values:
    return lambda result: result.requests.ordered(name)


TTFT: Final = Curve("TTFT", mark("Time to first token, ms"), _column("ttft"), "ttft")
TPOT: Final = Curve("TPOT", mark("Time per output token, ms"), _column("tpot"), "tpot")
ITL: Final = Curve("ITL", mark("Gap between token chunks, ms"), _column("itl"))
GAP: Final = Curve("Longest gap", mark("Longest gap of a request, ms"), _column("longest_gap"))


def ttft(group: Group) -> Figure | None:
    """Time to first token by percentile."""
    return _single(group, TTFT, tr("first token chunk − scheduled send"))


def tpot(group: Group) -> Figure | None:
    """Time per output token by percentile."""
    return _single(group, TPOT, tr("(last token − first token) / (output tokens − those of the first chunk)"))


def gaps(group: Group) -> Figure | None:
    """Gaps between token chunks, pooled, beside the longest of each request."""
    if not _has(group, GAP):
        return None
    subtitle = tr(
        "Left: every gap between token chunks. Right: the longest gap of each request, the stall a reader notices."
    )
    figure = style.canvas(
        headline(group, "Longest gap"),
        subtitle,
        2.9,
        simulated=group.simulated,
        entries=len(group.results),
        bottom=0.34,
    )
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.24})
    _panel(left, group, ITL, labels=(99,))
    _panel(right, group, GAP, labels=_MARKED)
    style.key(figure, style.handles(result.name for result in group.results))
    return figure


def headline(group: Group, key: str) -> str:
    """The title, from the numbers: median and tail, the run with the best tail first."""
    found = [(result.name, result.metrics.latencies[key]) for result in group.results]
    medians = {name: values.at(50) for name, values in found}
    ranked = sorted(((values.at(99), name) for name, values in found if values.at(99) is not None))
    words = [
        tr("{run} {median} and {tail} ms", run=style.elided(name), median=ms(medians[name]), tail=ms(tail))
        for tail, name in ranked
    ]
    if len(words) <= MOST:
        return tr("{measure} p50 and p99: {runs}", measure=tr(key), runs=joined(words))
    return tr(
        "{measure} p50 and p99, best and last of {count}: {best}; {worst}",
        measure=tr(key),
        count=len(words),
        best=words[0],
        worst=words[-1],
    )


def _single(group: Group, curve: Curve, definition: str) -> Figure | None:
    if not _has(group, curve):
        return None
    counts = sorted({result.metrics.latencies[curve.key].count for result in group.results})
    low, high = f"{counts[0]:,}", f"{counts[-1]:,}"
    requests = low if low == high else tr("{low} to {high}", low=low, high=high)
    subtitle = tr(
        "{definition}; {requests} requests per run, by percentile, stretched towards the slowest",
        definition=definition,
        requests=requests,
    )
    figure = style.canvas(
        headline(group, curve.key),
        subtitle,
        3.1,
        simulated=group.simulated,
        entries=len(group.results),
        bottom=0.34,
        right=0.68,
    )
    axes = figure.subplots()
    _panel(axes, group, curve, labels=_MARKED)
    style.key(figure, style.handles(result.name for result in group.results))
    return figure


def _has(group: Group, curve: Curve) -> bool:
    return any(curve.values(result).size for result in group.results)


def _panel(axes: Axes, group: Group, curve: Curve, *, labels: Sequence[float]) -> None:
    runs = [(position, curve.values(result) * 1e3) for position, result in enumerate(group.results)]
    runs = [(position, values) for position, values in runs if values.size]
    for position, values in runs:
        _draw(axes, position, values)
    _scales(axes, [values for _, values in runs], tr(curve.label))
    limit = _limits(group).get(curve.limit)
    style.limit_line(axes, limit, tr("limit\n{limit} ms", limit=setting(limit)))
    if len(runs) <= _LABELLED_RUNS:
        _value_labels(axes, runs, labels)


def _stretch(percentile: float | Floats) -> Floats:
    """p50 at 0.3, p90 at 1, p99 at 2: each further nine takes as much room as the one before it."""
    return np.asarray(-np.log10(1 - np.asarray(percentile, dtype=np.float64) / 100))


def _last(values: Floats | Gaps) -> float:
    """The highest percentile that this number of values can show."""
    return min(_END, 100 * (1 - 1 / max(values.size, 2)))


def _draw(axes: Axes, position: int, values: Floats | Gaps) -> None:
    x = np.linspace(0, _stretch(_last(values)), _POINTS)
    y = quantiles(values, 100 * (1 - 10.0**-x))
    axes.plot(
        x, y, color=palette.run_colour(position), linestyle=palette.run_line(position), solid_capstyle="round", zorder=3
    )
    marked = [percentile for percentile in _MARKED if percentile <= _last(values)]
    axes.plot(
        _stretch(np.array(marked, dtype=np.float64)),
        quantiles(values, marked),
        palette.run_marker(position),
        color=palette.run_colour(position),
        markeredgecolor=palette.PAPER,
        markersize=7,
        zorder=4,
    )


def _scales(axes: Axes, runs: Sequence[Floats | Gaps], label: str) -> None:
    style.quiet(axes)
    end = max(_last(values) for values in runs)
    ticks = [tick for tick in _TICKS if tick <= end + 1e-9]
    axes.set_xticks(_stretch(np.array(ticks, dtype=np.float64)), ["min", *(f"p{tick:g}" for tick in ticks[1:])])
    axes.set_xlim(-0.04, float(_stretch(end)) + 0.1)
    axes.xaxis.grid(visible=True)
    axes.set_ylabel(label)
    tails = [float(quantiles(values, [99])[0]) for values in runs]
    middle = min(float(quantiles(values, [50])[0]) for values in runs)
    if middle > 0 and max(tails) / middle > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(tr("{label} (log scale)", label=label))
    else:
        axes.set_ylim(0, max(float(quantiles(values, [_last(values)])[0]) for values in runs) * 1.12)
    style.grouped(axes.yaxis)


def _limits(group: Group) -> Mapping[str, float]:
    return group.baseline.run.manifest.workload.goodput


def _value_labels(axes: Axes, runs: Sequence[tuple[int, Floats | Gaps]], percentiles: Sequence[float]) -> None:
    """Values at percentiles: the highest above its curve, the others below, where a rising curve leaves room."""
    for percentile in percentiles:
        there = [
            (float(quantiles(values, [percentile])[0]), position)
            for position, values in runs
            if percentile <= _last(values)
        ]
        for order, (value, position) in enumerate(sorted(there, reverse=True)):
            above = order == 0
            axes.annotate(
                ms(value / 1e3),
                (float(_stretch(percentile)), value),
                (-5, 5) if above else (5, -6),
                textcoords="offset points",
                ha="right" if above else "left",
                va="bottom" if above else "top",
                size=9,
                weight="bold",
                color=palette.run_colour(position),
                zorder=5,
                bbox={"facecolor": palette.PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
            )
