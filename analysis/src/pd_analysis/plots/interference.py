"""A prefill's effect on others' gaps, along a few seconds of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.records.columns import Floats
from pd_analysis.words.formatting import ms, sentences, setting
from pd_analysis.words.language import tr

_PANELS: Final = 4
_DOTS: Final = 900  # gaps of a kind and panel: more would hide each other and make the page heavy
_SPANS: Final = 120
_SECONDS: Final = 5.0
_SHORTEST_S: Final = 1.0  # that all runs must have in common


def interference_timeline(group: Group) -> Figure | None:
    """One panel per run: every gap at the time when it ended, and under it the requests that waited for their first token."""
    found = [_Seen(result, interference(result)) for result in group.results[:_PANELS]]
    found = [seen for seen in found if seen.gaps.t.size]
    if not found:
        return None
    spans = _spans_shown(found)
    runs = _tails(found)
    figure = style.canvas(
        _title(runs),
        _subtitle(found, spans, runs),
        1.75 * len(found),
        simulated=group.simulated,
        entries=3,
        headed=True,
        bottom=0.5,
    )
    outer = figure.add_gridspec(len(found), 1, hspace=0.38)
    top = max(seen.largest(span) for seen, span in zip(found, spans, strict=True)) * 1e3
    for row, (seen, span) in enumerate(zip(found, spans, strict=True)):
        cell = GridSpecFromSubplotSpec(2, 1, subplot_spec=outer[row, 0], height_ratios=(2.6, 1), hspace=0.08)
        dots = figure.add_subplot(cell[0])
        below = figure.add_subplot(cell[1], sharex=dots)
        _panel(dots, seen, span, top)
        _waiting(below, seen, span)
    below.set_xlabel(tr("Seconds since the first measured request was due"))
    kinds = [
        Line2D([], [], color=palette.VERMILION, marker="o", linestyle="none", label=tr("gap beside a first token")),
        Line2D([], [], color=palette.GREY, marker="o", linestyle="none", label=tr("other gap")),
        Patch(facecolor=palette.AMBER, label=tr("waiting for its first token")),
    ]
    style.key(figure, kinds, headed=True)
    return figure


@dataclass(frozen=True)
class _Seen:
    """A run and its gaps; times below are since the start of its measured window."""

    result: Result
    gaps: Interference

    @property
    def start(self) -> float:
        return self.result.run.window[0]

    @property
    def times(self) -> Floats:
        return self.gaps.t - self.start

    def largest(self, span: tuple[float, float]) -> float:
        """The longest gap that is shown."""
        inside = (self.times >= span[0]) & (self.times <= span[1])
        return float(self.gaps.gap[inside].max(initial=0.0))


def _spans_shown(found: Sequence[_Seen]) -> list[tuple[float, float]]:
    """The same seconds of every run, so that panels can be compared line by line; each run's own where they have none in common."""
    low = max(float(seen.times[0]) for seen in found)
    high = min(float(seen.times[-1]) for seen in found)
    if high - low >= _SHORTEST_S:
        return [_middle(low, high)] * len(found)
    return [_middle(float(seen.times[0]), float(seen.times[-1])) for seen in found]


def _middle(low: float, high: float) -> tuple[float, float]:
    middle, half = (low + high) / 2, min(high - low, _SECONDS) / 2
    return middle - half, middle + half


def _title(runs: str) -> str:
    """The stalls, which medians hide: the slowest hundredth of all gaps beside a first token."""
    if not runs:
        return tr("Gaps between token chunks along a few seconds")
    return tr("p99 of the gaps in which another request got its first token: {runs}", runs=runs)


def _tails(found: Sequence[_Seen]) -> str:
    tails = [(seen.result.name, seen.gaps.tail(beside=True)) for seen in found]
    return best_first(tails, lambda seconds: f"{ms(seconds)} ms")


def _subtitle(found: Sequence[_Seen], spans: Sequence[tuple[float, float]], runs: str) -> str:
    """What the dots are, and of which seconds the number of the title is, which are more than are drawn."""
    dots = tr(
        "Each dot is a gap between two token chunks; the usual ones are thinned out. Bars: from the send of a request to its first token."
    )
    if not runs:
        return dots
    counted = max(float(seen.times[-1] - seen.times[0]) for seen in found)
    drawn = max(high - low for low, high in spans)
    which = tr(
        "The p99 is over up to {counted} s in the middle of each run, of which {drawn} s are drawn.",
        counted=_seconds(counted),
        drawn=_seconds(drawn),
    )
    return sentences((dots, which))


def _seconds(seconds: float) -> str:
    return setting(round(seconds, 1))


def _panel(dots: Axes, seen: _Seen, span: tuple[float, float], top: float) -> None:
    times, gaps = seen.times, seen.gaps
    shown = (times >= span[0]) & (times <= span[1])
    for beside, colour, order in ((False, palette.GREY, 2), (True, palette.VERMILION, 3)):
        chosen = _thinned(np.flatnonzero(shown & (gaps.beside == beside)), gaps.gap)
        dots.plot(times[chosen], gaps.gap[chosen] * 1e3, ".", color=colour, markersize=2.6, alpha=0.75, zorder=order)
    style.quiet(dots)
    longest = tr(
        "longest of the {seconds} s drawn: {gap} ms", seconds=_seconds(span[1] - span[0]), gap=ms(seen.largest(span))
    )
    dots.set_title(style.elided(seen.result.name, 40), loc="left", size=10, weight="bold")
    dots.set_title(longest, loc="right", size=9, color=palette.MUTED)
    dots.set_ylim(0, top * 1.1)
    dots.set_xlim(*span)
    dots.set_ylabel(tr("Gap, ms"))
    dots.tick_params(labelbottom=False)


def _thinned(chosen: np.ndarray, gap: Floats) -> np.ndarray:
    """All of the longest gaps, and as many of the usual ones as a reader can distinguish."""
    if chosen.size <= _DOTS:
        return chosen
    long = gap[chosen] >= np.quantile(gap[chosen], 1 - _DOTS / 2 / chosen.size)
    usual = chosen[~long]
    return np.sort(np.concatenate((chosen[long], usual[:: max(1, -(-usual.size // (_DOTS // 2)))])))


def _waiting(axes: Axes, seen: _Seen, span: tuple[float, float]) -> None:
    rows = seen.result.run.requests.rows
    low, high = span[0] + seen.start, span[1] + seen.start
    waiting = rows[(rows["first"] >= low) & (rows["scheduled"] <= high)].head(_SPANS)
    lanes: list[float] = []
    lines = []
    for due, first in waiting[["scheduled", "first"]].itertuples(index=False):
        lane = next((number for number, free in enumerate(lanes) if free <= due), len(lanes))
        lanes[lane : lane + 1] = [first]
        lines.append([(due - seen.start, lane), (first - seen.start, lane)])
    axes.add_collection(LineCollection(lines, colors=palette.AMBER, linewidths=2.2, capstyle="butt"))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_ylim(-0.8, max(len(lanes), 3) - 0.2)
