"""The four panels of the classic two-GPU test scripts: power, clock, latency of each request, and both boards side by side."""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pd_analysis.numbers.evaluation import Result
from pd_analysis.plots import palette, style
from pd_analysis.words.language import tr
from pd_contracts.names import Role

_HEIGHT: Final = 6.4
_ROLES: Final = (Role.PREFILL, Role.DECODE)
_LATENCIES: Final = {
    "ttft": ("TTFT", palette.BLUE),
    "tpot": ("TPOT", palette.VERMILION),
    "e2el": ("E2EL", palette.GREEN),
}


def performance_analysis(result: Result) -> Figure:
    """One disaggregated run; must run inside `style.apply()`."""
    subtitle = tr("Left: each board over the measured window. Right: every request, and the boards' means and maxima.")
    figure = style.canvas(result.name, subtitle, _HEIGHT, simulated=result.run.simulated, top=0.95)
    panels = figure.subplots(2, 2, gridspec_kw={"wspace": 0.24, "hspace": 0.36})
    _over_time(panels[0][0], result, "power_w", tr("Power, W"))
    _requests(panels[0][1], result)
    _over_time(panels[1][0], result, "sm_clock_mhz", tr("SM clock, MHz"))
    _boards(panels[1][1], result)
    return figure


def _over_time(axes: Axes, result: Result, column: str, title: str) -> None:
    start, end = result.run.window
    samples = result.run.samples
    for role in _ROLES:
        rows = samples[(samples["role"] == role) & samples["t"].between(start, end)] if len(samples) else samples
        for _, board in rows.groupby("index") if len(rows) else ():
            axes.plot(
                board["t"] - start, board[column], color=palette.ROLE_COLOURS[role], label=str(role), linewidth=1.2
            )
    axes.set_title(title, loc="left", size=10)
    axes.set_xlabel(tr("seconds"))
    axes.set_ylim(bottom=0)
    style.quiet(axes)
    _legend(axes)


def _requests(axes: Axes, result: Result) -> None:
    served = result.run.requests.served
    for column, (name, colour) in _LATENCIES.items():
        values = served[column].to_numpy(dtype=float) * 1e3
        axes.plot(np.arange(len(values)), values, ".", color=colour, label=name, markersize=3)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(tr("Latency, ms"), loc="left", size=10)
    axes.set_xlabel(tr("request"))
    style.quiet(axes)
    _legend(axes)


def _boards(axes: Axes, result: Result) -> None:
    start, end = result.run.window
    samples = result.run.samples
    labels = (tr("mean power, W"), tr("highest power, W"))
    for number, role in enumerate(_ROLES):
        rows = samples[(samples["role"] == role) & samples["t"].between(start, end)] if len(samples) else samples
        power: list[float] = rows["power_w"].dropna().tolist() if len(rows) else []
        heights = [float(np.mean(power)), float(np.max(power))] if len(power) else [0.0, 0.0]
        bars = axes.bar(
            np.arange(2) + 0.4 * number - 0.2, heights, 0.36, color=palette.ROLE_COLOURS[role], label=str(role)
        )
        axes.bar_label(bars, labels=[f"{height:.0f}" if len(power) else "–" for height in heights], size=9)
    axes.set_xticks(np.arange(2), labels)
    axes.margins(y=0.15)
    style.quiet(axes)
    _legend(axes)


def _legend(axes: Axes) -> None:
    known = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if known:
        axes.legend(
            known.values(),
            known.keys(),
            loc="upper right",
            bbox_to_anchor=(1.02, 1.135),
            ncols=3,
            handlelength=1.1,
            columnspacing=1.1,
        )
