"""Limits scaled, and the hand-off of KV: two questions that a single rate answers."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.slo_attainment import attainment, scales
from pd_analysis.numbers.sweep import ATTAINMENT
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.records.columns import Floats, Gaps, quantiles
from pd_analysis.words.formatting import joined, number, percent
from pd_analysis.words.language import tr
from pd_contracts.names import Topology

_STEPS: Final = 200
_LOG_FROM: Final = 25.0
_FACTORS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)
_NOBODY: Final = 0.02
_EVERYBODY: Final = 0.995
_MARGIN: Final = 1.1


def slo_scale(group: Group) -> Figure | None:
    """Share of requests within all limits when the limits are scaled; tighter limits are to the right, as DistServe draws it."""
    limits = group.baseline.run.manifest.workload.goodput
    factors = scales(group, limits) if limits else np.empty(0)
    if not factors.size:
        return None
    curves = np.array([[attainment(result, limits, factor) for factor in factors] for result in group.results])
    tightest = [
        (result.name, next((factor for factor, share in zip(factors, curve, strict=True) if share >= ATTAINMENT), None))
        for result, curve in zip(group.results, curves, strict=True)
    ]
    figure = style.canvas(
        tr(
            "Scale of the limits that {share} of requests still meet: {runs}",
            share=percent(ATTAINMENT),
            runs=best_first(tightest, number) or tr("none"),
        ),
        tr(
            "1 means the given limits: {limits}. Failed requests never meet them. Tighter limits are to the right.",
            limits=joined(f"{name.upper()} ≤ {limit:g} ms" for name, limit in limits.items()),
        ),
        3.0,
        simulated=group.simulated,
        entries=len(group.results),
        bottom=0.55,
    )
    _draw_shares(figure.subplots(), factors, curves)
    style.key(figure, style.handles((result.name for result in group.results), markers=False))
    return figure


def _draw_shares(axes: Axes, factors: Floats, curves: Floats) -> None:
    """One curve per run over the factors, with a line at the share that counts and one at the given limits."""
    for position, curve in enumerate(curves):
        axes.plot(
            factors, curve * 100, color=palette.run_colour(position), linestyle=palette.run_line(position), zorder=3
        )
    axes.axhline(ATTAINMENT * 100, color=palette.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    axes.axvline(1, color=palette.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    style.quiet(axes)
    axes.set_xscale("log")
    axes.set_xlim(*_ends(factors, curves))
    low, high = sorted(axes.get_xlim())
    ticks = [tick for tick in _FACTORS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 104)
    axes.set_xlabel(tr("Limits, times the given ones"))
    axes.set_ylabel(tr("Requests within all limits, %"))


def _ends(factors: Floats, curves: Floats) -> tuple[float, float]:
    """From the loosest limits that matter to the tightest: beyond them every run keeps all or nothing."""
    some, all_ = curves.max(axis=0) > _NOBODY, curves.min(axis=0) < _EVERYBODY
    inside = factors[some & all_]
    low, high = (float(inside[0]), float(inside[-1])) if inside.size else (float(factors[0]), float(factors[-1]))
    return max(high, 1.0) * _MARGIN, min(low, 1.0) / _MARGIN


def kv_handoff_cdf(group: Group) -> Figure | None:
    """How long KV takes to decode, with the first step there: share of requests that wait at most this long."""
    handed = [
        _Handed(position, result.name, result.requests.ordered("kv_and_first_decode"))
        for position, result in enumerate(group.results)
        if result.topology is Topology.DISAGG and result.requests.ordered("kv_and_first_decode").size > 1
    ]
    if not handed:
        return None
    tails = [(one.name, float(quantiles(one.times_ms, [99])[0])) for one in handed]
    figure = style.canvas(
        tr(
            "p99 of KV hand-off and first decode step: {runs}",
            runs=best_first(tails, lambda time: f"{number(time)} ms"),
        ),
        tr(
            "From prefill's answer to decode's first byte, as the proxy timed it: share of requests that wait at most this long."
        ),
        2.7,
        simulated=group.simulated,
        entries=len(handed),
        bottom=0.55,
    )
    _draw_cdf(figure.subplots(), handed)
    every = style.handles((result.name for result in group.results), markers=False)
    style.key(figure, [every[one.position] for one in handed])
    return figure


class _Handed(NamedTuple):
    """The hand-off times of a run, the shortest first."""

    position: int
    name: str
    times_ms: Floats | Gaps


def _draw_cdf(axes: Axes, handed: Sequence[_Handed]) -> None:
    shares = np.linspace(0, 100, _STEPS)
    for position, _, times in handed:
        axes.plot(
            quantiles(times, shares),
            shares,
            color=palette.run_colour(position),
            linestyle=palette.run_line(position),
            zorder=3,
        )
    style.quiet(axes)
    axes.xaxis.grid(visible=True)
    low = min(float(quantiles(one.times_ms, [1])[0]) for one in handed)
    high = max(float(one.times_ms[-1]) for one in handed)
    if low > 0 and high / low > _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
    style.grouped(axes.xaxis)
    axes.set_ylim(0, 102)
    axes.set_xlabel("ms")
    axes.set_ylabel(tr("Requests, %"))
