"""A whole sweep at a glance: throughput and latency, one row a deployment and shape of requests, one column a rate per GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.measures import TTFT_P99
from pd_analysis.numbers.sweep import Get, Sweep, rate_per_gpu
from pd_analysis.plots import style
from pd_analysis.words.formatting import joined, number, sizes
from pd_analysis.words.language import mark, tr


@dataclass(frozen=True)
class Shown:
    """A number, and how its panel looks."""

    title: str
    colour: str
    get: Get


def _slow_ms(result: Result) -> float | None:
    seconds = TTFT_P99.get(result)
    return None if seconds is None else seconds * 1e3


_TOKENS: Final = Shown(
    mark("Output tokens per GPU, tok/s"), style.BLUE, lambda result: result.metrics.per_gpu(result.metrics.output_rate)
)
_SLOW: Final = Shown("TTFT p99, ms", style.VERMILLION, _slow_ms)


def heat_map(sweeps: Sequence[Sweep]) -> Figure | None:
    """Both numbers of every row and rate; None unless some row has two rates."""
    rows = [
        (_row_name(sweeps, sweep, series.name), series.results)
        for sweep in sweeps
        for series in sweep.series
        if len(series.results) > 1
    ]
    rates = sorted({rate for _, results in rows for result in results if (rate := rate_per_gpu(result)) is not None})
    if not rows or len(rates) < 2:
        return None
    figure = style.canvas(
        tr("Throughput and latency over the whole sweep"),
        tr("Left: darker is more. Right: darker is slower. Empty: not measured."),
        0.36 * len(rows) + 0.2,
        simulated=any(sweep.simulated for sweep in sweeps),
        left=1.9,
        top=0.98,
    )
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    _panel(left, rows, rates, _TOKENS)
    _panel(right, rows, rates, _SLOW)
    left.set_yticks(range(len(rows)), [style.elided(name, 30) for name, _ in rows])
    return figure


def _row_name(sweeps: Sequence[Sweep], sweep: Sweep, series: str) -> str:
    if len(sweeps) == 1:
        return series
    return joined((series, sizes(sweep.series[0].results[0].run.manifest.workload)))


def _panel(
    axes: Axes,
    rows: Sequence[tuple[str, tuple[Result, ...]]],
    rates: Sequence[float],
    shown: Shown,
) -> None:
    values = np.full((len(rows), len(rates)), np.nan)
    for row, (_, results) in enumerate(rows):
        for result in results:
            rate, value = rate_per_gpu(result), shown.get(result)
            if rate is not None and value is not None:
                values[row, rates.index(rate)] = value
    # TTFT explodes: on a linear scale one saturated cell would leave all others white.
    shades = np.log(np.where(values > 0, values, np.nan))
    low, high = np.nanmin(shades), np.nanmax(shades)
    part = (shades - low) / (high - low) if high > low else np.zeros_like(shades)
    for row, column in np.argwhere(np.isfinite(part)):
        share = 0.08 + 0.72 * float(part[row, column])
        # Opacity and not a mixed colour, so that a page with a dark theme can put its own paper under it.
        axes.barh(row, 1, left=column - 0.5, height=0.94, color=shown.colour, alpha=share, linewidth=0, zorder=2)
        axes.text(
            column,
            row,
            number(float(values[row, column])),
            ha="center",
            va="center",
            size=8.5,
            color=style.INK,
            zorder=3,
        )
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(tr(shown.title), loc="left", size=10, weight="bold")
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(rates)), [number(rate) for rate in rates])
    axes.set_xlabel(tr("Requests per second and GPU"))
