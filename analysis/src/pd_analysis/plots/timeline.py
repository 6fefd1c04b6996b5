"""Power along the run, with the requests in flight under it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.ticker import MaxNLocator

from pd_analysis.energy.joules import Energy, GpuEnergy
from pd_analysis.energy.readings import AVERAGE_LAG_S
from pd_analysis.numbers.evaluation import ROLES, Group, Result
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.records.columns import Floats
from pd_analysis.words.formatting import number
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

_ACROSS: Final = 2
_CELL_IN: Final = 3.5
_POINTS: Final = 700  # more than a panel has pixels: longer recordings are thinned to this
_FLIGHT_POINTS: Final = 600
_GPU_LINES: Final = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


def power_timeline(group: Group) -> Figure | None:
    """One panel per run: power of every board that serves, the measured window shaded, and requests in flight."""
    recorded = [(result, result.energy) for result in group.results if result.energy and result.energy.serving]
    if not recorded:
        return None
    across = min(_ACROSS, len(recorded))
    down = -(-len(recorded) // across)
    subtitle = tr(
        "Thin: every sample. Thick: mean of 1 s. Shaded: the measured window. Below: SM clock (mean of 1 s), and requests by phase."
    )
    clocks = any(result.run.samples["sm_clock_mhz"].notna().any() for result, _ in recorded)
    figure = style.canvas(
        _title(recorded), subtitle, (_CELL_IN + 0.7 * clocks) * down, simulated=group.simulated, top=1.0
    )
    outer = figure.add_gridspec(down, across, wspace=0.16, hspace=0.3)
    top = max(_top(result) for result, _ in recorded)
    flights = [phases(result.run.requests.rows) for result, _ in recorded]
    most = max(float((waiting + writing).max(initial=1)) for _, waiting, writing in flights)
    fastest = max(float(result.run.samples["sm_clock_mhz"].max()) for result, _ in recorded) if clocks else 0.0
    for number_, (result, energy) in enumerate(recorded):
        cell = GridSpecFromSubplotSpec(
            2 + clocks,
            1,
            subplot_spec=outer[number_ // across, number_ % across],
            height_ratios=(3, *([0.7] if clocks else []), 1),
            hspace=0.12,
        )
        power = figure.add_subplot(cell[0])
        flight = figure.add_subplot(cell[1 + clocks], sharex=power)
        _power(power, result, energy, top)
        _flight(flight, result, flights[number_], most)
        if clocks:
            clock = figure.add_subplot(cell[1], sharex=power)
            _clock(clock, result, energy, fastest, named=number_ % across == 0)
        if number_ % across == 0:
            power.set_ylabel(tr("Power, W"))
            flight.set_ylabel(tr("In flight"))
    return figure


def _title(recorded: Sequence[tuple[Result, Energy]]) -> str:
    means = [
        (style.with_role(style.elided(result.name), role, mark("{run} ({role})")), _mean_w(energy, role))
        for result, energy in recorded
        for role in energy.roles
    ]
    return tr("Mean power of a GPU: {runs}", runs=best_first(means, lambda watts: f"{number(watts)} W"))


def _mean_w(energy: Energy, role: Role) -> float | None:
    means = [gpu.mean_w for gpu in energy.serving if gpu.role is role and gpu.mean_w is not None]
    return sum(means) / len(means) if means else None


def _top(result: Result) -> float:
    return float(result.run.samples["power_w"].fillna(result.run.samples["power_average_w"]).max())


def _power(axes: Axes, result: Result, energy: Energy, top: float) -> None:
    start, end = result.run.window
    shift = energy.shift_s - start
    axes.axvspan(0, end - start, color=palette.SHADE, linewidth=0, zorder=0)
    for position, gpu in enumerate(energy.serving):
        own = result.run.samples[result.run.samples["index"] == gpu.index]
        _line(axes, own.assign(t=own["t"] + shift), gpu, position)
    style.quiet(axes)
    axes.set_title(style.elided(result.name, 40), loc="left", size=10, weight="bold")
    axes.set_ylim(0, top * 1.28)
    axes.tick_params(labelbottom=False)
    axes.legend(loc="upper left", ncols=2, fontsize=8.5, handlelength=2, borderaxespad=0.3, columnspacing=1.2)


def _line(axes: Axes, own: pd.DataFrame, gpu: GpuEnergy, position: int) -> None:
    step = max(1, len(own) // _POINTS)
    colour = palette.GREY if gpu.role is None else palette.ROLE_COLOURS[gpu.role]
    instant = own["power_w"].fillna(own["power_average_w"])
    axes.plot(own["t"].iloc[::step], instant.iloc[::step], color=colour, linewidth=0.6, alpha=0.3, zorder=2)
    times, smooth = _mean_of_a_second(own)
    axes.plot(
        times.iloc[::step],
        smooth.iloc[::step],
        color=colour,
        linestyle=_GPU_LINES[position % len(_GPU_LINES)],
        linewidth=1.8,
        label=tr("GPU {index}, {role}", index=gpu.index, role=tr(ROLES[gpu.role]) if gpu.role else tr("no role")),
        zorder=3,
    )


def _mean_of_a_second(own: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """The board's own average, shifted to the time that it is about. For a board without such an average, the mean of its samples, which is less precise."""
    if own["power_average_w"].notna().any():
        return own["t"] - AVERAGE_LAG_S, own["power_average_w"]
    return own["t"], own["power_w"].rolling(_samples_a_second(own), center=True, min_periods=1).mean()


def _samples_a_second(own: pd.DataFrame) -> int:
    every = float(own["t"].diff().median())
    return max(1, round(2 * AVERAGE_LAG_S / every)) if every > 0 else 1


def _clock(axes: Axes, result: Result, energy: Energy, fastest: float, *, named: bool) -> None:
    start, end = result.run.window
    axes.axvspan(0, end - start, color=palette.SHADE, linewidth=0, zorder=0)
    for position, gpu in enumerate(energy.serving):
        own = result.run.samples[result.run.samples["index"] == gpu.index]
        step = max(1, len(own) // _POINTS)
        clock = own["sm_clock_mhz"].rolling(_samples_a_second(own), center=True, min_periods=1).mean()
        axes.plot(
            own["t"].iloc[::step] + energy.shift_s - start,
            clock.iloc[::step],
            color=palette.GREY if gpu.role is None else palette.ROLE_COLOURS[gpu.role],
            linestyle=_GPU_LINES[position % len(_GPU_LINES)],
            linewidth=1.3,
            zorder=3,
        )
    style.quiet(axes)
    axes.set_ylim(0, fastest * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.tick_params(labelbottom=False)
    if named:
        axes.set_ylabel("MHz")


def _flight(axes: Axes, result: Result, under_way: tuple[Floats, Floats, Floats], most: float) -> None:
    start, end = result.run.window
    times, waiting, writing = under_way
    axes.axvspan(0, end - start, color=palette.SHADE, linewidth=0, zorder=0)
    layers = (
        (np.zeros_like(writing), writing, palette.GREEN, tr("writing")),
        (writing, writing + waiting, palette.AMBER, tr("waiting")),
    )
    for low, high, colour, name in layers:
        axes.fill_between(
            times - start, low, high, step="post", color=colour, alpha=0.7, linewidth=0, zorder=2, label=name
        )
    axes.legend(loc="upper left", ncols=2, fontsize=8, handlelength=1, borderaxespad=0.1, columnspacing=1)
    style.quiet(axes)
    axes.set_ylim(0, most * 1.5)
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.set_xlabel(tr("Seconds since the first measured request was due"))


def phases(rows: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """Evenly spaced times, and how many requests waited for their first token or wrote tokens at each: as many points for a
    long run as for a short one.
    """
    sent = rows[rows["sent"].notna()]
    if sent.empty:
        return np.empty(0), np.empty(0), np.empty(0)
    begun, ended = _ascending(sent["sent"]), _ascending(sent["end"].fillna(np.inf))
    finite = ended[np.isfinite(ended)]
    times = np.linspace(begun[0], max(begun[-1], finite[-1] if finite.size else begun[-1]), _FLIGHT_POINTS)
    # A request that failed without a token waited until its end.
    first = _ascending(sent["first"].fillna(sent["end"]).fillna(np.inf))
    started, served, gone = (np.searchsorted(column, times, side="right") for column in (begun, first, ended))
    return times, (started - served).astype(np.float64), (served - gone).astype(np.float64)


def _ascending(column: "pd.Series[float]") -> Floats:
    return np.sort(column.to_numpy(dtype=np.float64))
