"""A prefill's effect on others' gaps, along a few seconds of the run."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.interference import Interference, interference
from pd_analysis.plots import style
from pd_analysis.records.columns import Floats
from pd_analysis.words.formatting import joined, ms
from pd_analysis.words.language import tr

_PANELS: Final = 4
_DOTS: Final = 900  # gaps of a kind and panel: more would hide each other and make the page heavy
_SPANS: Final = 120
_SECONDS: Final = 5.0


def interference_timeline(group: Group) -> Figure | None:
    """One panel a run: every gap at the time when it ended, and under it the requests that waited for their first token."""
    found = [(position, result, interference(result)) for position, result in enumerate(group.results[:_PANELS])]
    found = [(position, result, seen) for position, result, seen in found if seen.t.size]
    if not found:
        return None
    figure = style.canvas(
        _title([(result, seen) for _, result, seen in found]),
        tr(
            "Each dot is a gap between two token chunks; the usual ones are thinned out. Bars: from the send of a request to its first token."
        ),
        1.75 * len(found),
        simulated=group.simulated,
        entries=3,
        bottom=0.5,
        top=0.84,
    )
    outer = figure.add_gridspec(len(found), 1, hspace=0.38)
    top = max(float(np.quantile(seen.gap, 0.9995)) for _, _, seen in found) * 1e3
    for row, (_, result, seen) in enumerate(found):
        cell = GridSpecFromSubplotSpec(2, 1, subplot_spec=outer[row, 0], height_ratios=(2.6, 1), hspace=0.08)
        dots = figure.add_subplot(cell[0])
        spans = figure.add_subplot(cell[1], sharex=dots)
        _panel(dots, spans, result, seen, top)
    spans.set_xlabel(tr("Seconds since the first measured request was due"))
    style.key(
        figure,
        [
            Line2D([], [], color=style.VERMILLION, marker="o", linestyle="none", label=tr("gap beside a first token")),
            Line2D([], [], color=style.GREY, marker="o", linestyle="none", label=tr("other gap")),
            Patch(facecolor=style.AMBER, label=tr("waiting for its first token")),
        ],
    )
    return figure


def _title(found: list[tuple[Result, Interference]]) -> str:
    parts = [
        tr(
            "{run} {beside} ms against {others} ms",
            run=style.elided(result.name),
            beside=ms(seen.median(beside=True)),
            others=ms(seen.median(beside=False)),
        )
        for result, seen in found[:3]
    ]
    return tr("Median gap beside another request's first token, against the other gaps: {runs}", runs=joined(parts))


def _panel(dots: Axes, spans: Axes, result: Result, seen: Interference, top: float) -> None:
    start = result.run.window[0]
    middle = float(np.median(seen.t))
    low, high = middle - _SECONDS / 2, middle + _SECONDS / 2
    shown = (seen.t >= low) & (seen.t <= high)
    for beside, colour, order in ((False, style.GREY, 2), (True, style.VERMILLION, 3)):
        chosen = np.flatnonzero(shown & (seen.beside == beside))
        chosen = _thinned(chosen, seen.gap)
        dots.plot(
            seen.t[chosen] - start,
            seen.gap[chosen] * 1e3,
            ".",
            color=colour,
            markersize=2.6,
            alpha=0.75,
            zorder=order,
        )
    style.quiet(dots)
    dots.set_title(style.elided(result.name, 40), loc="right", size=10, weight="bold")
    dots.set_ylim(0, top * 1.15)
    dots.set_xlim(low - start, high - start)
    dots.set_ylabel(tr("Gap, ms"))
    dots.tick_params(labelbottom=False)
    _spans(spans, result, low, high)


def _thinned(chosen: np.ndarray, gap: Floats) -> np.ndarray:
    """The longest gaps all, and of the usual ones as many as can be told apart."""
    if chosen.size <= _DOTS:
        return chosen
    long = gap[chosen] >= np.quantile(gap[chosen], 1 - _DOTS / 2 / chosen.size)
    usual = chosen[~long]
    return np.sort(np.concatenate((chosen[long], usual[:: max(1, -(-usual.size // (_DOTS // 2)))])))


def _spans(axes: Axes, result: Result, low: float, high: float) -> None:
    rows = result.run.requests.rows
    waiting = rows[(rows["first"] >= low) & (rows["scheduled"] <= high)].head(_SPANS)
    start = result.run.window[0]
    lanes: list[float] = []
    lines = []
    for due, first in waiting[["scheduled", "first"]].itertuples(index=False):
        lane = next((number for number, free in enumerate(lanes) if free <= due), len(lanes))
        lanes[lane : lane + 1] = [first]
        lines.append([(due - start, lane), (first - start, lane)])
    axes.add_collection(LineCollection(lines, colors=style.AMBER, linewidths=2.2, capstyle="butt"))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_ylim(-0.8, max(len(lanes), 3) - 0.2)
