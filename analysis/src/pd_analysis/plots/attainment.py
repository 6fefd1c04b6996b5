"""Limits scaled, and the hand-off of KV: two questions that a single rate answers."""

from typing import Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.slo_attainment import attainment, scales
from pd_analysis.numbers.sweep import ATTAINMENT
from pd_analysis.plots import palette, style
from pd_analysis.plots.titles import best_first
from pd_analysis.records.columns import Floats, quantiles
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
    axes = figure.subplots()
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
    style.key(figure, style.handles((result.name for result in group.results), markers=False))
    return figure


def _ends(factors: Floats, curves: Floats) -> tuple[float, float]:
    """From the loosest limits that matter to the tightest: beyond them every run keeps all or nothing."""
    some, all_ = curves.max(axis=0) > _NOBODY, curves.min(axis=0) < _EVERYBODY
    inside = factors[some & all_]
    low, high = (float(inside[0]), float(inside[-1])) if inside.size else (float(factors[0]), float(factors[-1]))
    return max(high, 1.0) * _MARGIN, min(low, 1.0) / _MARGIN


def kv_handoff_cdf(group: Group) -> Figure | None:
    """How long KV takes to decode, with the first step there: share of requests that wait at most this long."""
    handed = [
        (position, result, result.requests.ordered("kv_and_first_decode"))
        for position, result in enumerate(group.results)
        if result.topology is Topology.DISAGG and result.requests.ordered("kv_and_first_decode").size > 1
    ]
    if not handed:
        return None
    tails = [(result.name, float(quantiles(values, [99])[0])) for _, result, values in handed]
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
    axes = figure.subplots()
    shares = np.linspace(0, 100, _STEPS)
    for position, _, values in handed:
        axes.plot(
            quantiles(values, shares),
            shares,
            color=palette.run_colour(position),
            linestyle=palette.run_line(position),
            zorder=3,
        )
    style.quiet(axes)
    axes.xaxis.grid(visible=True)
    low = min(float(quantiles(values, [1])[0]) for _, _, values in handed)
    high = max(float(values[-1]) for _, _, values in handed)
    if low > 0 and high / low > _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
    style.grouped(axes.xaxis)
    axes.set_ylim(0, 102)
    axes.set_xlabel("ms")
    axes.set_ylabel(tr("Requests, %"))
    kept = {position for position, _, _ in handed}
    style.key(
        figure,
        [
            handle
            for position, handle in enumerate(style.handles((result.name for result in group.results), markers=False))
            if position in kept
        ],
    )
    return figure
