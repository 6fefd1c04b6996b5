"""Power along the run, with the requests in flight under it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.ticker import MaxNLocator

from pd_analysis.energy import AVERAGE_LAG_S, Energy, GpuEnergy
from pd_analysis.frames import Floats
from pd_analysis.plots import style
from pd_analysis.results import Group, Result
from pd_analysis.texts import number
from pd_contracts.names import Role

_ACROSS: Final = 2
_CELL_IN: Final = 3.5
_POINTS: Final = 1200  # more than a panel has pixels: longer recordings are thinned to this
_FLIGHT_POINTS: Final = 600
_GPU_LINES: Final = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


def power_timeline(group: Group) -> Figure | None:
    """One panel a run: power of every board that serves, the measured window shaded, and requests in flight."""
    recorded = [(result, result.energy) for result in group.results if result.energy and result.energy.serving]
    if not recorded:
        return None
    across = min(_ACROSS, len(recorded))
    down = -(-len(recorded) // across)
    subtitle = "Thin: every sample. Thick: mean of 1 s. Shaded: the measured window. Below: requests in flight."
    figure = style.canvas(_title(recorded), subtitle, _CELL_IN * down, simulated=group.simulated, top=1.0)
    outer = figure.add_gridspec(down, across, wspace=0.16, hspace=0.3)
    top = max(_top(result) for result, _ in recorded)
    flights = [in_flight(result.run.requests.rows) for result, _ in recorded]
    most = max(float(counts.max(initial=1)) for _, counts in flights)
    for number_, (result, energy) in enumerate(recorded):
        cell = GridSpecFromSubplotSpec(
            2, 1, subplot_spec=outer[number_ // across, number_ % across], height_ratios=(3, 1), hspace=0.12
        )
        power = figure.add_subplot(cell[0])
        flight = figure.add_subplot(cell[1], sharex=power)
        _power(power, result, energy, top)
        _flight(flight, result, flights[number_], most)
        if number_ % across == 0:
            power.set_ylabel("Power, W")
            flight.set_ylabel("In flight")
    return figure


def _title(recorded: Sequence[tuple[Result, Energy]]) -> str:
    parts = []
    for result, energy in recorded[:3]:
        for role in energy.roles:
            who = style.with_role(style.elided(result.name), role)
            parts.append(f"{who} {number(_mean_w(energy, role))} W")
    return "Mean power of a GPU: " + "; ".join(parts)


def _mean_w(energy: Energy, role: Role) -> float | None:
    means = [gpu.mean_w for gpu in energy.serving if gpu.role is role and gpu.mean_w is not None]
    return sum(means) / len(means) if means else None


def _top(result: Result) -> float:
    return float(result.run.samples["power_w"].fillna(result.run.samples["power_average_w"]).max())


def _power(axes: Axes, result: Result, energy: Energy, top: float) -> None:
    start, end = result.run.window
    shift = energy.shift_s - start
    axes.axvspan(0, end - start, color=style.SHADE, linewidth=0, zorder=0)
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
    colour = style.GREY if gpu.role is None else style.ROLE_COLOURS[gpu.role]
    instant = own["power_w"].fillna(own["power_average_w"])
    axes.plot(own["t"].iloc[::step], instant.iloc[::step], color=colour, linewidth=0.6, alpha=0.3, zorder=2)
    times, smooth = _mean_of_a_second(own)
    axes.plot(
        times.iloc[::step],
        smooth.iloc[::step],
        color=colour,
        linestyle=_GPU_LINES[position % len(_GPU_LINES)],
        linewidth=1.8,
        label=f"GPU {gpu.index}, {gpu.role.value if gpu.role else 'no role'}",
        zorder=3,
    )


def _mean_of_a_second(own: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """The board's own average, put where it belongs; of a board without one, the mean of its samples, which see less."""
    if own["power_average_w"].notna().any():
        return own["t"] - AVERAGE_LAG_S, own["power_average_w"]
    every = float(own["t"].diff().median())
    width = max(1, round(2 * AVERAGE_LAG_S / every)) if every > 0 else 1
    return own["t"], own["power_w"].rolling(width, center=True, min_periods=1).mean()


def _flight(axes: Axes, result: Result, under_way: tuple[Floats, Floats], most: float) -> None:
    start, end = result.run.window
    times, counts = under_way
    axes.axvspan(0, end - start, color=style.SHADE, linewidth=0, zorder=0)
    axes.fill_between(times - start, counts, step="post", color=style.GREY, alpha=0.55, linewidth=0, zorder=2)
    style.quiet(axes)
    axes.set_ylim(0, most * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.set_xlabel("Seconds since the first measured request was due")


def in_flight(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Evenly spaced times, and how many requests were under way at each: as many points for a long run as for a short one."""
    sent = rows[rows["sent"].notna()]
    begun = np.sort(sent["sent"].to_numpy(dtype=np.float64))
    ended = np.sort(sent["end"].dropna().to_numpy(dtype=np.float64))
    if not begun.size:
        return np.empty(0), np.empty(0)
    times = np.linspace(begun[0], max(begun[-1], ended[-1] if ended.size else begun[-1]), _FLIGHT_POINTS)
    under_way = np.searchsorted(begun, times, side="right") - np.searchsorted(ended, times, side="right")
    return times, under_way.astype(np.float64)
