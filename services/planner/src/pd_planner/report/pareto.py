"""The Pareto plot: the deployments that no other beats."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pd_analysis.plots import palette, style
from pd_analysis.words.language import tr
from pd_planner.confidence.findings import Findings
from pd_planner.report.colours import colour_of, key_of, marker_of
from pd_planner.search.question import Choice

# How far the plot goes beyond its front, where the names begin, and how many there are.
_BEYOND_FRONT, _NAMES_AT, _NAMED = 1.5, 0.68, 12
_ONE_PLACE: Final = 0.14  # of the axis: a label that stands below its point would lie on a point so near below it


def pareto(found: Findings) -> Figure:
    """Joules against GPUs around what no other deployment beats, whose names stand beside."""
    front = sorted(found.answer.front, key=lambda choice: (choice.fleet.gpus, choice.operation.joules))
    able = [choice for choice in found.answer.choices if not choice.refusal]
    right = _BEYOND_FRONT * max(choice.fleet.gpus for choice in front)
    top = _BEYOND_FRONT * max(choice.operation.joules for choice in front)
    shown = [choice for choice in able if choice.fleet.gpus <= right and choice.operation.joules <= top]
    key = key_of([*front, *shown])
    figure = style.canvas(
        tr("{few} of {all} deployments are beaten by no other", few=len(front), all=len(able)),
        tr(
            "Joules per output token against GPUs; numbered: none has fewer GPUs, fewer joules and an earlier first token (p99) at once; pale: beaten by one of these"
        ),
        2.9,
        simulated=True,
        entries=len(key),
    )
    axes = figure.subplots(gridspec_kw={"right": _NAMES_AT - 0.03})
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    for choice in sorted(shown, key=lambda choice: choice in front):
        axes.plot(
            choice.fleet.gpus,
            choice.operation.joules,
            marker_of(choice),
            color=colour_of(choice),
            alpha=1.0 if choice in front else 0.25,
            markersize=7,
            zorder=3,
        )
    for numbers, point in _together(front, top):
        axes.annotate(
            ", ".join(map(str, numbers)), point, xytext=(0, -13), textcoords="offset points", size=8, ha="center"
        )
    _names(figure, axes, [choice.fleet.label for choice in front])
    axes.set_xlabel(tr("GPUs"))
    axes.set_ylabel(tr("J per output token"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.quiet(axes)
    style.key(figure, key)
    return figure


def _together(front: Sequence[Choice], top: float) -> Iterator[tuple[list[int], tuple[float, float]]]:
    """The numbers of the front's points, those at one place in one label, and the lowest of the place."""
    near: list[list[Choice]] = []
    for choice in front:
        below = near[-1][-1] if near and near[-1][-1].fleet.gpus == choice.fleet.gpus else None
        if below and choice.operation.joules - below.operation.joules < _ONE_PLACE * top:
            near[-1].append(choice)
        else:
            near.append([choice])
    numbers = count(1)
    for group in near:
        yield [next(numbers) for _ in group], (group[0].fleet.gpus, group[0].operation.joules)


def _names(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """A numbered list beside the axes."""
    lines = [f"{place}: {style.elided(name, 30)}" for place, name in enumerate(names[:_NAMED], 1)]
    if len(names) > _NAMED:
        lines.append(tr("and {count} more, in the table", count=len(names) - _NAMED))
    figure.text(
        _NAMES_AT, axes.get_position().y1, "\n".join(lines), size=8.5, va="top", linespacing=1.5, color=palette.INK
    )
