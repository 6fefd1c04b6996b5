"""Figures of a plan, in the report's style."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pd_analysis.plots import fonts, palette, style, svg
from pd_analysis.words.formatting import number
from pd_analysis.words.language import current_language, in_language, mark, tr
from pd_planner.confidence.findings import Findings
from pd_planner.report.colours import colour_of, key_of, line_of, marker_of
from pd_planner.report.pareto import pareto
from pd_planner.report.tables import ratio_words
from pd_planner.search.breakeven import Curve, Point
from pd_planner.search.candidates import WORDS
from pd_planner.search.fleet import Operation

PLOTS: Final = "plots"
_LIGHTEST, _DARKEST = 0.10, 0.75  # opacity, so that a page with a dark theme can put its own paper under it
_FULL: Final = 0.5  # of a ratio's logarithm, from which a cell is as dark as it gets
_NEARLY_EQUAL: Final = 1.28  # standard deviations: a ratio nearer to 1 cannot be told from it in eight of ten


@dataclass(frozen=True)
class Chart:
    """A figure on disk and as an element of the page."""

    name: str
    alt: str
    svg: str


def charts(found: Findings, folder: Path) -> list[Chart]:
    """Draw what there is into `folder`/plots, as PNG and SVG; in English if this host has no font for the current language."""
    lang = current_language()
    font = None if lang == "en" else fonts.chinese_font()
    wanted = [(name, tr(alt), make) for name, alt, make in _wanted(found)]
    with style.apply(font), fonts.without_remarks(), in_language("en" if font is None else lang):
        return [Chart(name, alt, svg.save(make(), folder / PLOTS / name)) for name, alt, make in wanted]


def _wanted(found: Findings) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
    yield "capacity", mark("Capacity per GPU with its band, by deployment"), lambda: capacity(found)
    if found.flips:
        yield (
            "break_even",
            mark("Separate prefill and decode against plain vLLM, over prompt and answer lengths"),
            lambda: flips(found),
        )
    if found.curves:
        yield "rates", mark("Latency and energy against the rate per GPU"), lambda: rates(found)
    if found.has_front:
        yield "pareto", mark("Deployments that no other beats in GPUs, energy and first token"), lambda: pareto(found)


def capacity(found: Findings) -> Figure:
    """Bands of the deployments that were drawn."""
    names = [drawn.choice.fleet.label for drawn in found.drawn]
    key = [
        Patch(facecolor=entry.get_color(), alpha=0.35, label=entry.get_label())
        for entry in key_of(drawn.choice for drawn in found.drawn)
    ]
    figure = style.canvas(
        tr("Best of {count} deployments: {first}", count=len(found.answer.choices), first=names[0])
        if len(names) > 1
        else tr("The only deployment: {name}", name=names[0]),
        tr(
            "Requests/s per GPU within {limits}; 5th to 95th percentile",
            limits=found.question.setting.limits.words,
        ),
        0.42 * len(names) + 0.2,
        simulated=True,
        left=2.6,
        entries=len(key),
    )
    axes = figure.subplots()
    for row, drawn in enumerate(found.drawn):
        band, colour = drawn.band, colour_of(drawn.choice)
        axes.barh(row, band.high - band.low, left=band.low, height=0.5, color=colour, alpha=0.35, linewidth=0, zorder=2)
        axes.plot([band.middle, band.middle], [row - 0.25, row + 0.25], color=colour, linewidth=3, zorder=3)
        axes.text(band.high, row, f"  {number(band.middle)}", va="center", size=9, color=palette.INK)
    axes.set_yticks(range(len(names)), [style.elided(name, 34) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0, right=1.12 * max(drawn.band.high for drawn in found.drawn))
    axes.set_xlabel(tr("Requests per second per GPU"))
    style.quiet(axes, grid="x")
    style.key(figure, key)
    return figure


def flips(found: Findings) -> Figure:
    """The break-even map: one cell per pair of lengths."""
    judged = found.verdict
    like = judged.apart.choice.fleet.candidate if judged.apart else None
    connector = tr(WORDS[like.connector]) if like and like.connector else ""
    engines = like.prefills + like.others if like else 0
    figure = style.canvas(
        tr(
            "Where {count} disaggregated engines with {connector} carry more than {count} plain ones",
            count=engines,
            connector=connector,
        ),
        tr(
            "Disaggregated ÷ plain within the same limits, best split. Green: disaggregated carries more; blue: plain; pale: unclear"
        ),
        3.4,
        simulated=True,
        left=1.0,
    )
    axes = figure.subplots()
    prompts = sorted({point.prompt for point in found.flips})
    outputs = sorted({point.output for point in found.flips})
    doubt = _doubt(found)
    for point in found.flips:
        _cell(axes, outputs.index(point.output), prompts.index(point.prompt), point, doubt)
    axes.set_xticks(range(len(outputs)), [f"{output:,}" for output in outputs])
    axes.set_yticks(range(len(prompts)), [f"{prompt:,}" for prompt in prompts])
    axes.set_xlim(-0.5, len(outputs) - 0.5)
    axes.set_ylim(-0.5, len(prompts) - 0.5)
    axes.set_xlabel(tr("Answer, tokens"))
    axes.set_ylabel(tr("Prompt, tokens"))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _doubt(found: Findings) -> float:
    """Standard deviation of the logarithm of apart ÷ plain."""
    sides = [drawn.choice.doubt for drawn in (found.verdict.plain, found.verdict.apart) if drawn]
    return math.hypot(*sides) if len(sides) == 2 else 0.0


def _cell(axes: Axes, column: int, row: int, point: Point, doubt: float) -> None:
    ratio = point.ratio
    if not np.isfinite(ratio) and not point.apart:
        axes.text(column, row, "–", ha="center", va="center", size=8.5, color=palette.MUTED, zorder=3)
        return
    size = abs(float(np.log(ratio))) if 0 < ratio < math.inf else _FULL
    told = size > _NEARLY_EQUAL * doubt
    share = _LIGHTEST + (_DARKEST - _LIGHTEST) * min(1.0, size / _FULL) if told else _LIGHTEST / 2
    colour = palette.GREEN if ratio > 1 else palette.BLUE
    axes.barh(row, 0.96, left=column - 0.48, height=0.94, color=colour, alpha=share, linewidth=0, zorder=2)
    text = ratio_words(ratio)
    axes.text(column, row + 0.12, text, ha="center", va="center", size=8.5, color=palette.INK, zorder=3)
    split = point.split.shape if point.split and ratio > 1 else ""
    axes.text(column, row - 0.24, split, ha="center", va="center", size=6.5, color=palette.MUTED, zorder=3)


@dataclass(frozen=True)
class _Panel:
    title: str
    get: Callable[[Operation], float]
    limit: str = ""


_PANELS: Final = (
    _Panel(mark("TTFT p99, ms"), lambda operation: operation.latencies["ttft_p99"], "ttft"),
    _Panel(mark("TPOT p99, ms"), lambda operation: operation.latencies["tpot_p99"], "tpot"),
    _Panel(mark("J per output token"), lambda operation: operation.joules),
)


def rates(found: Findings) -> Figure:
    """Plain and apart against the rate."""
    figure = style.canvas(
        tr("Latency and energy against the rate"),
        tr("A curve ends where fewer than half of the requests are within the limits; dashed: the limit"),
        2.5,
        simulated=True,
        entries=len(found.curves),
    )
    for axes, panel in zip(figure.subplots(1, len(_PANELS), gridspec_kw={"wspace": 0.36}), _PANELS, strict=True):
        for curve in found.curves:
            shown = [operation for operation in curve.operations if operation.within >= 0.5]
            places = [operation.rate / curve.fleet.gpus for operation in shown]
            axes.plot(places, [panel.get(operation) for operation in shown], markersize=4, **_looks(curve))
        limit = found.question.setting.limits.milliseconds.get(panel.limit)
        if limit is not None:
            axes.axhline(limit, color=palette.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_ylabel(tr(panel.title))
        axes.set_xlabel(tr("Requests/s per GPU"))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        style.quiet(axes)
    style.key(
        figure, [Line2D([], [], label=style.elided(curve.fleet.label), **_looks(curve)) for curve in found.curves]
    )
    return figure


def _looks(curve: Curve) -> dict[str, Any]:
    """A curve's colour, line and marker: those that its kind of deployment has in the other figures."""
    kind = curve.fleet.candidate
    return {"color": colour_of(kind), "linestyle": line_of(kind), "marker": marker_of(kind)}
