"""A whole sweep at a glance: a block for each shape of requests, in it a row per deployment and a column per amount that was asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.measures import TTFT_P99
from pd_analysis.numbers.sweep import Get, Sweep
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.records.columns import Floats
from pd_analysis.words.formatting import number, setting, sizes
from pd_analysis.words.language import mark, tr

_ROW_IN: Final = 0.3
_HEAD_IN: Final = 0.42
_FOOT_IN: Final = 0.52
_TEXT: Final = (5.5, 8.5)  # points: smaller numbers would not be read, larger ones would not look like the rest
_WIDEST: Final = 7  # characters of a number, the brackets of some counted half


@dataclass(frozen=True)
class Shown:
    """A number, and how its panel looks."""

    title: str
    colour: str
    get: Get


def _slow_ms(result: Result) -> float | None:
    seconds = TTFT_P99.get(result)
    return None if seconds is None else seconds * 1e3


def _tokens(sweep: Sweep) -> Shown:
    title = mark("Output tokens per second per GPU") if sweep.axis.per_gpu else mark("Output tokens per second")
    return Shown(title, palette.BLUE, lambda result: sweep.axis.share(result, result.metrics.output_rate))


_SLOW: Final = Shown(mark("TTFT p99, ms"), palette.VERMILION, _slow_ms)


def heat_map(sweeps: Sequence[Sweep]) -> Figure | None:
    """Both numbers of every deployment and amount; None unless some deployment has two amounts."""
    blocks = [(sweep, _places(sweep)) for sweep in sweeps]
    blocks = [(sweep, places) for sweep, places in blocks if len(places) > 1]
    if not blocks:
        return None
    labels = [style.elided(series.name, 24) for sweep, _ in blocks for series in sweep.series]
    heights = [_ROW_IN * len(sweep.series) for sweep, _ in blocks]
    figure = style.canvas(
        _title(blocks),
        _subtitle(sweep for sweep, _ in blocks),
        sum(heights) + (_HEAD_IN + _FOOT_IN) * (len(blocks) - 1),
        simulated=any(sweep.simulated for sweep, _ in blocks),
        left=style.room_for(labels),
        top=0.72 + _HEAD_IN,
        bottom=_FOOT_IN,
    )
    between = (_HEAD_IN + _FOOT_IN) / (sum(heights) / len(heights))
    panels = figure.subplots(
        len(blocks), 2, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": between, "height_ratios": heights}
    )
    for (left, right), (sweep, places) in zip(panels, blocks, strict=True):
        for axes, shown in ((left, _tokens(sweep)), (right, _SLOW)):
            _panel(axes, sweep, places, shown)
        left.set_yticks(range(len(sweep.series)), [style.elided(series.name, 24) for series in sweep.series])
        right.set_yticks([])
        _heading(left, sweep)
    return figure


def _title(blocks: Sequence[tuple[Sweep, list[float]]]) -> str:
    sweep, places = blocks[0]
    shown = _tokens(sweep)
    unit = tr("tok/s per GPU") if sweep.axis.per_gpu else tr("tok/s")
    most = [(series.name, dict(series.points(shown.get)).get(places[-1])) for series in sweep.series]
    runs = best_first(most, lambda value: f"{number(value)} {unit}", less=False)
    if not runs:
        return tr("Throughput and latency over the whole sweep")
    return tr("Most output at {place} {unit}: {runs}", place=setting(places[-1]), unit=sweep.axis.unit, runs=runs)


def _subtitle(sweeps: Iterable[Sweep]) -> str:
    unfit = any(result.unfit for sweep in sweeps for series in sweep.series for result in series.results)
    return tr(
        mark(
            "Stronger colour: more (left), slower (right). Each block has its own scale. Empty: not measured. In brackets: not for decisions."
        )
        if unfit
        else mark("Stronger colour: more (left), slower (right). Each block has its own scale. Empty: not measured.")
    )


def _places(sweep: Sweep) -> list[float]:
    return sorted({x for series in sweep.series for result in series.results if (x := sweep.axis.place(result))})


def _heading(axes: Axes, sweep: Sweep) -> None:
    load = sweep.series[0].results[0].run.manifest.workload
    axes.annotate(
        tr("{sizes} tokens", sizes=sizes(load)),
        (0, 1),
        (0, 20),
        xycoords=axes.transAxes,
        textcoords="offset points",
        size=10.5,
        weight="bold",
    )


def _panel(axes: Axes, sweep: Sweep, places: Sequence[float], shown: Shown) -> None:
    values, unfit = _values(sweep, places, shown)
    size = _size(axes, len(places))
    for (row, column), share in np.ndenumerate(_shades(values)):
        if not np.isfinite(share):
            continue
        # Opacity and not a mixed colour, so that a page with a dark theme can put its own paper under it.
        axes.barh(row, 1, left=column - 0.5, height=0.94, color=shown.colour, alpha=share, linewidth=0, zorder=2)
        if size >= _TEXT[0]:
            text = _short(float(values[row, column]))
            if unfit[row, column]:
                text = f"({text})"
            axes.text(column, row, text, ha="center", va="center", size=size, color=palette.INK, zorder=3)
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=min(9.5, size + 1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(tr(shown.title), loc="left", size=9, color=palette.MUTED, pad=4)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(len(sweep.series) - 0.5, -0.5)
    axes.set_xticks(range(len(places)), [setting(float(f"{place:.4g}")) for place in places])
    axes.set_xlabel(sweep.axis.label)


def _values(sweep: Sweep, places: Sequence[float], shown: Shown) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """What each cell shows, and whether it is unfit for a decision."""
    unfit = np.zeros((len(sweep.series), len(places)), dtype=np.bool_)
    values = np.full((len(sweep.series), len(places)), np.nan)
    for row, series in enumerate(sweep.series):
        for result in series.results:
            place, value = sweep.axis.place(result), shown.get(result)
            if place and value is not None:
                values[row, places.index(place)] = value
                unfit[row, places.index(place)] = bool(result.unfit)
    return values, unfit


def _shades(values: Floats) -> Floats:
    """Opacities on a logarithmic scale: TTFT grows by orders of magnitude, and on a linear scale one saturated cell would leave all others white."""
    logs = np.log(np.where(values > 0, values, np.nan))
    if not np.isfinite(logs).any():
        return logs
    low, high = np.nanmin(logs), np.nanmax(logs)
    return 0.08 + 0.72 * ((logs - low) / (high - low) if high > low else np.zeros_like(logs))


def _size(axes: Axes, columns: int) -> float:
    """Points at which the widest number fits into a cell."""
    cell_in = axes.get_position().width * style.WIDTH / columns
    return min(_TEXT[1], cell_in * 72 / (_WIDEST * style.COLUMN_EM))


def _short(value: float) -> str:
    return f"{number(value / 1e3)}k" if value >= 1e5 else number(value)
