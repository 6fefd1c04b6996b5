"""What the figures of a sweep share: canvas, curves with their intervals, and axes over what was asked for."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from pd_analysis.numbers.bootstrap import Draws, interval
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.sweep import Get, Series, Sweep, xy
from pd_analysis.plots import palette, style
from pd_analysis.words.formatting import sizes
from pd_analysis.words.language import tr

_LOG_FROM: Final = 25.0  # spread from which an axis is logarithmic
_TICKS: Final = 13.0  # along the whole width of a figure
_SHADED: Final = 4  # deployments up to which intervals are drawn: more would overlap


def short(sweep: Sweep) -> str:
    """The shape of the requests, as a sentence begins."""
    load = sweep.series[0].results[0].run.manifest.workload
    return tr("Requests of {sizes} tokens", sizes=sizes(load))


def canvas(
    sweep: Sweep, title: str, subtitle: str, height: float, *, headed: bool = False, right: float = 0.3
) -> Figure:
    """A figure of the sweep with room for its key."""
    entries = len(sweep.series)
    return style.canvas(
        title, subtitle, height, simulated=sweep.simulated, entries=entries, headed=headed, bottom=0.55, right=right
    )


def shaded(sweep: Sweep) -> bool:
    """Whether intervals are drawn."""
    return len(sweep.series) <= _SHADED


def lines(axes: Axes, sweep: Sweep, get: Get, *, draws: Draws | None = None, scale: float = 1.0) -> None:
    """One curve per deployment, with its interval where draws are given; runs that are unfit for a decision are hollow and off the curve."""
    for position, series in enumerate(sweep.series):
        if draws is not None and shaded(sweep):
            _band(axes, series, draws, palette.run_colour(position), scale)
        curve(axes, [(x, y * scale) for x, y in series.points(get)], position)
        hollow(axes, [(x, y * scale) for x, y in series.unfit_points(get)], position)


def curve(axes: Axes, points: Sequence[tuple[float, float]], position: int) -> None:
    """The n-th deployment's curve."""
    axes.plot(
        *xy(points),
        color=palette.run_colour(position),
        linestyle=palette.run_line(position),
        marker=palette.run_marker(position),
        markeredgecolor=palette.PAPER,
        markersize=6.5,
        zorder=3,
    )


def hollow(axes: Axes, points: Sequence[tuple[float, float]], position: int) -> None:
    """Points that are unfit for a decision."""
    axes.plot(
        *xy(points),
        linestyle="none",
        marker=palette.run_marker(position),
        markerfacecolor=palette.PAPER,
        markeredgecolor=palette.run_colour(position),
        markersize=6,
        zorder=3,
    )


def _band(axes: Axes, series: Series, draws: Draws, colour: str, scale: float) -> None:
    low = series.points(lambda result: None if (found := draws(result)) is None else interval(found)[0] * scale)
    high = series.points(lambda result: None if (found := draws(result)) is None else interval(found)[1] * scale)
    if len(low) > 1:
        axes.fill_between(xy(low)[0], xy(low)[1], xy(high)[1], color=colour, alpha=0.15, linewidth=0, zorder=1)


def along(axes: Axes, sweep: Sweep) -> None:
    """The axis of what was asked for."""
    axes.set_xlabel(sweep.axis.label)
    axes.set_xlim(left=0)
    whole = sweep.axis.pace is not Pace.RATE and not sweep.axis.per_gpu  # requests, of which there are no halves
    ticks = min(8, round(_TICKS * axes.get_position().width))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=whole))
    style.grouped(axes.xaxis)


def rise(axes: Axes, sweep: Sweep, label: str, limit: float | None = None) -> None:
    """The scale of a rising quantity: logarithmic if it spans orders of magnitude."""
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
    style.grouped(axes.yaxis)
    style.limit_line(axes, limit, tr("limit"))
    along(axes, sweep)


def handles(sweep: Sweep) -> list[Artist]:
    return style.handles(series.name for series in sweep.series)
