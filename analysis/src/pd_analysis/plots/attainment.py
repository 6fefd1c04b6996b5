"""Limits scaled, and the hand-off of KV: two questions that a single rate answers."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.slo_attainment import attainment, scales
from pd_analysis.numbers.sweep import ATTAINMENT
from pd_analysis.plots import style
from pd_analysis.records.columns import quantiles
from pd_analysis.words.formatting import joined, number, percent
from pd_analysis.words.language import tr
from pd_contracts.names import Topology

_STEPS = 200
_LOG_FROM = 25.0


def slo_scale(group: Group) -> Figure | None:
    """Share of requests within all limits when the limits are scaled; tighter limits are to the right, as DistServe draws it."""
    limits = group.baseline.run.manifest.workload.goodput
    factors = scales(group, limits) if limits else np.empty(0)
    if not factors.size:
        return None
    curves = [[attainment(result, limits, factor) for factor in factors] for result in group.results]
    tightest = [
        next((factor for factor, share in zip(factors, curve, strict=True) if share >= ATTAINMENT), None)
        for curve in curves
    ]
    words = joined(
        f"{style.elided(result.name)} {number(factor)}"
        for result, factor in list(zip(group.results, tightest, strict=True))[:3]
    )
    what = joined(f"{name.upper()} ≤ {limit:g} ms" for name, limit in limits.items())
    figure = style.canvas(
        tr("Tightest limits that {share} of requests meet, as a factor: {runs}", share=percent(ATTAINMENT), runs=words),
        tr("1 is the given limits: {limits}. Failures never meet one. Tighter limits are to the right.", limits=what),
        3.0,
        simulated=group.simulated,
        entries=len(group.results),
        bottom=0.55,
    )
    axes = figure.subplots()
    for position, curve in enumerate(curves):
        axes.plot(
            factors,
            [share * 100 for share in curve],
            color=style.run_colour(position),
            linestyle=style.run_line(position),
            zorder=3,
        )
    axes.axhline(ATTAINMENT * 100, color=style.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    axes.axvline(1, color=style.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    style.quiet(axes)
    axes.set_xscale("log")
    axes.set_xlim(factors[-1], factors[0])
    ticks = [
        tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if factors[0] <= tick <= factors[-1]
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 104)
    axes.set_xlabel(tr("Limits, times the given ones"))
    axes.set_ylabel(tr("Requests within all limits, %"))
    style.key(figure, style.handles((result.name for result in group.results), markers=False))
    return figure


def kv_handoff_cdf(group: Group) -> Figure | None:
    """How long KV takes to decode, with the first step there: share of requests that wait at most so long."""
    handed = [
        (position, result, result.requests.ordered("kv_and_first_decode"))
        for position, result in enumerate(group.results)
        if result.topology is Topology.DISAGG and result.requests.ordered("kv_and_first_decode").size > 1
    ]
    if not handed:
        return None
    words = joined(
        tr(
            "{run} p50 {median} ms, p99 {tail} ms",
            run=style.elided(result.name),
            median=number(float(quantiles(values, [50])[0])),
            tail=number(float(quantiles(values, [99])[0])),
        )
        for _, result, values in handed[:2]
    )
    figure = style.canvas(
        tr("KV hand-off and first decode step: {runs}", runs=words),
        tr(
            "From prefill's answer to decode's first byte, as the proxy timed it: share of requests that wait at most so long."
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
            color=style.run_colour(position),
            linestyle=style.run_line(position),
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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
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
