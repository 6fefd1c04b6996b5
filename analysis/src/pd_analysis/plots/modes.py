"""Figures of the modes that send requests in groups: latency and energy by batch size, and those of prefill and decode."""

from collections.abc import Callable, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pd_analysis.numbers.batches import Batch, batches
from pd_analysis.numbers.evaluation import ROLES, Group
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.phase_split import PhaseCost, phase_split
from pd_analysis.numbers.value import Value
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.tables.modes import cost_words
from pd_analysis.words.formatting import mean_count, number, setting, sizes
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

_ROW_IN: Final = 0.34
_LINEAR_TO: Final = 4.0  # spread of the sizes from which the axis is logarithmic

BatchValue = Callable[[Batch], float | None]
_PANELS: Final[tuple[tuple[str, BatchValue], ...]] = (
    (mark("TTFT p50, ms"), lambda batch: None if batch.ttft_s is None else batch.ttft_s * 1e3),
    (mark("TPOT p50, ms"), lambda batch: None if batch.tpot_s is None else batch.tpot_s * 1e3),
    (mark("Output tokens per second"), lambda batch: batch.output_rate),
    (
        mark("J per output token"),
        lambda batch: None if (joules := batch.token_j) is None or joules.lost else joules.value,
    ),
)


def by_batch_size(group: Group) -> Figure | None:
    """Four panels over the batch size: both latencies, throughput and joules per token."""
    if group.pace is not Pace.BATCHES:
        return None
    runs = [batches(result) for result in group.results]
    panels = [(title, get) for title, get in _PANELS if any(get(batch) is not None for run in runs for batch in run)]
    if not panels:
        return None
    load = group.baseline.run.manifest.workload
    most = [
        (result.name, max((batch.output_rate for batch in run if batch.output_rate is not None), default=None))
        for result, run in zip(group.results, runs, strict=True)
    ]
    figure = style.canvas(
        tr("Mode batch, most output: {runs}", runs=best_first(most, lambda rate: f"{number(rate)} tok/s", less=False)),
        tr(
            "Requests of {sizes} tokens sent at once; medians over the requests of a batch. Bars: error of the energy.",
            sizes=sizes(load),
        ),
        2.05 * -(-len(panels) // 2),
        simulated=group.simulated,
        entries=len(runs),
        headed=True,
        bottom=0.55,
    )
    every = figure.subplots(-(-len(panels) // 2), 2, squeeze=False, gridspec_kw={"wspace": 0.24, "hspace": 0.42}).flat
    for axes, (title, get) in zip(every, panels, strict=False):
        _batch_panel(axes, runs, get, errors=title == _PANELS[-1][0])
        axes.set_title(tr(title), loc="left", size=9.5, weight="bold")
    for axes in list(every)[len(panels) :]:
        axes.remove()
    style.key(figure, style.handles(result.name for result in group.results), headed=True)
    return figure


def _batch_panel(axes: Axes, runs: Sequence[Sequence[Batch]], get: BatchValue, *, errors: bool) -> None:
    for position, run in enumerate(runs):
        points = [(batch.size, value, batch.token_j) for batch in run if (value := get(batch)) is not None]
        axes.errorbar(
            [size for size, _, _ in points],
            [value for _, value, _ in points],
            yerr=[0.0 if joules is None else joules.error for _, _, joules in points] if errors else None,
            color=palette.run_colour(position),
            linestyle=palette.run_line(position),
            marker=palette.run_marker(position),
            markeredgecolor=palette.PAPER,
            capsize=3,
            zorder=3,
            clip_on=False,
        )
    every = sorted({batch.size for run in runs for batch in run})
    style.quiet(axes)
    if every[-1] > _LINEAR_TO * every[0]:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: setting(float(f"{value:.6g}"))))
    style.grouped(axes.yaxis)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(tr("Requests at once (mode batch)"))


def by_phase(group: Group) -> Figure | None:
    """Time, energy and power of prefill and of decode, with their errors."""
    if group.pace is not Pace.PHASES:
        return None
    found = [(result.name, split) for result in group.results if (split := phase_split(result)) is not None]
    costs = [(name, cost) for name, split in found for cost in (split.prefill, split.decode)]
    if not costs:
        return None
    labels = [f"{style.elided(name, 22)}\n{tr(ROLES[Role(cost.phase)])}" for name, cost in costs]
    panels: list[tuple[str, list[Value | None], str]] = [
        (tr("Time per request, ms"), [_in_ms(cost.time_s) for _, cost in costs], "ms"),
        (tr("Energy per request, J"), [cost.energy_j for _, cost in costs], "J"),
        (tr("Power, W"), [cost.power_w for _, cost in costs], "W"),
    ]
    panels = [panel for panel in panels if any(value is not None for value in panel[1])]
    figure = style.canvas(
        _phase_title(found[0][0], found[0][1].prefill, found[0][1].decode),
        tr("Mode phase-split: requests of one token, and of all; decode is the difference. Bars: one standard error."),
        _ROW_IN * len(costs) + 0.3,
        simulated=group.simulated,
        left=style.room_for(labels),
        entries=2,
    )
    for number_, (axes, (title, values, unit)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.16})[0], panels, strict=True)
    ):
        _phase_panel(axes, [cost for _, cost in costs], values, unit)
        axes.set_xlabel(title)
        axes.set_yticks(range(len(costs)), labels if number_ == 0 else [""] * len(costs))
    style.key(
        figure,
        [Patch(facecolor=palette.ROLE_COLOURS[role], label=tr(ROLES[role])) for role in (Role.PREFILL, Role.DECODE)],
    )
    return figure


def _phase_title(name: str, prefill: PhaseCost, decode: PhaseCost) -> str:
    return tr(
        "{run}: {prompt} tokens of prefill {prefill}, {output} of decode {decode}",
        run=style.elided(name),
        prompt=mean_count(prefill.tokens),
        prefill=cost_words(prefill.time_s, "ms", scale=1e3),
        output=mean_count(decode.tokens),
        decode=cost_words(decode.time_s, "ms", scale=1e3),
    )


def _in_ms(value: Value) -> Value:
    return Value(value.value * 1e3, value.error * 1e3)


def _phase_panel(axes: Axes, costs: Sequence[PhaseCost], values: Sequence[Value | None], unit: str) -> None:
    known = [value for value in values if value is not None and not value.lost]
    widest = max((value.value + _finite(value.error) for value in known), default=1.0)
    for row, (cost, value) in enumerate(zip(costs, values, strict=True)):
        if value is None:
            continue
        colour = palette.ROLE_COLOURS[Role(cost.phase)]
        if value.lost:  # a bar would be read as a value
            axes.text(widest * 0.03, row, cost_words(value, unit), va="center", size=8.5, color=palette.MUTED)
            continue
        axes.barh(row, value.value, height=0.6, color=colour, xerr=_finite(value.error), capsize=3, ecolor=palette.INK)
        end = value.value + _finite(value.error)
        axes.text(end + widest * 0.03, row, cost_words(value, unit), va="center", size=8.5, weight="bold")
    style.quiet(axes, grid="x")
    axes.set_ylim(len(costs) - 0.45, -0.55)
    axes.set_xlim(0.0, widest * 1.75)
    style.grouped(axes.xaxis)
    axes.locator_params(axis="x", nbins=3)


def _finite(error: float) -> float:
    return error if error < float("inf") else 0.0
