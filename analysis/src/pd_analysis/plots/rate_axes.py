"""What the figures of a sweep share: canvas, curves with their intervals, and axes over the rate per GPU."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pd_analysis.numbers.bootstrap import Draws, interval
from pd_analysis.numbers.sweep import Get, Series, Sweep
from pd_analysis.plots import style
from pd_analysis.words.formatting import sizes
from pd_analysis.words.language import tr

_LOG_FROM: Final = 25.0  # spread from which an axis is logarithmic


def short(sweep: Sweep) -> str:
    """The shape of the requests, as a sentence begins."""
    load = sweep.series[0].results[0].run.manifest.workload
    return tr("Requests of {sizes} tokens", sizes=sizes(load))


def canvas(sweep: Sweep, title: str, subtitle: str, height: float, entries: int = 0) -> Figure:
    """A figure of the sweep with room for its key."""
    short = subtitle if len(subtitle) < 130 else subtitle[:128] + "…"
    return style.canvas(
        title, short, height, simulated=sweep.simulated, entries=len(sweep.series) + entries, bottom=0.55
    )


def xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as two lists."""
    return [x for x, _ in points], [y for _, y in points]


def lines(axes: Axes, sweep: Sweep, get: Get, *, draws: Draws | None = None, scale: float = 1.0) -> None:
    """One curve a deployment, with its interval where draws are given."""
    for position, series in enumerate(sweep.series):
        points = [(x, y * scale) for x, y in series.points(get)]
        colour = style.run_colour(position)
        if draws is not None:
            band(axes, series, draws, colour, scale)
        axes.plot(
            *xy(points),
            color=colour,
            linestyle=style.run_line(position),
            marker=style.run_marker(position),
            markeredgecolor=style.PAPER,
            markersize=6.5,
            zorder=3,
        )


def band(axes: Axes, series: Series, draws: Draws, colour: str, scale: float) -> None:
    """The interval of a curve."""
    low = series.points(lambda result: None if (found := draws(result)) is None else interval(found)[0] * scale)
    high = series.points(lambda result: None if (found := draws(result)) is None else interval(found)[1] * scale)
    if len(low) > 1:
        axes.fill_between(xy(low)[0], xy(low)[1], xy(high)[1], color=colour, alpha=0.15, linewidth=0, zorder=1)


def labelled(axes: Axes, points: Sequence[tuple[float, float, str]], position: int) -> None:
    """A curve whose points carry their rates."""
    colour = style.run_colour(position)
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        color=colour,
        linestyle=style.run_line(position),
        marker=style.run_marker(position),
        markeredgecolor=style.PAPER,
        zorder=3,
    )
    for x, y, label in points:
        left = position % 2 == 0
        axes.annotate(
            label,
            (x, y),
            (-7 if left else 7, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            size=8,
            color=colour,
            zorder=4,
        )


def rates(axes: Axes) -> None:
    """The axis of rates."""
    axes.set_xlabel(tr("Requests per second and GPU"))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def rise(axes: Axes, label: str, limit: float | None) -> None:
    """Scales for something that rises: logarithmic where it explodes."""
    style.quiet(axes)
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines] or [np.ones(1)])
    values = values[np.isfinite(values)]
    axes.set_ylabel(label)
    if values.size and values.min() > 0 and values.max() / values.min() > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(tr("{label} (log scale)", label=label))
    else:
        axes.set_ylim(0, float(values.max(initial=0.0)) * 1.15 or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    low, high = axes.get_ylim()
    if limit is not None and low < limit < high:
        axes.axhline(limit, color=style.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    rates(axes)


def handles(sweep: Sweep) -> list[Artist]:
    """Lines for the key."""
    return style.handles(series.name for series in sweep.series)
