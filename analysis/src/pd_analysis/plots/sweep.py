"""A sweep's figures: latency, attainment, goodput and energy against the rate that each GPU is offered."""

from collections.abc import Callable, Mapping
from typing import Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pd_analysis.numbers.bootstrap import of_percentile, of_rate
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.slo_attainment import attainment
from pd_analysis.numbers.sweep import ATTAINMENT, Get, Sweep, best_rate, beyond, joules, label_of
from pd_analysis.plots import style
from pd_analysis.plots.rate_axes import canvas, handles, labelled, lines, rates, rise, short, xy
from pd_analysis.words.formatting import joined, number, percent
from pd_analysis.words.language import tr
from pd_contracts.names import Role

_LINES: Final[dict[str, style.LineStyle]] = {"both": "-", "ttft": (0, (1.2, 1.4)), "tpot": (0, (5, 1.6))}


def latency(percentile: int) -> Callable[[Sweep], Figure | None]:
    """TTFT and TPOT at a percentile, side by side."""

    def draw(sweep: Sweep) -> Figure | None:
        title = tr("TTFT and TPOT p{percentile} against the rate per GPU", percentile=percentile)
        subtitle = tr("{requests}. Shaded: 95 % bootstrap interval. Dotted: the limit.", requests=short(sweep))
        figure = canvas(sweep, title, subtitle, 3.1)
        for axes, name in zip(figure.subplots(1, 2, gridspec_kw={"wspace": 0.22}), ("ttft", "tpot"), strict=True):
            lines(
                axes,
                sweep,
                _latency(name, percentile),
                draws=of_percentile(name, percentile),
                scale=1e3,
            )
            rise(axes, f"{name.upper()} p{percentile}, ms", sweep.limits.get(name))
        style.key(figure, handles(sweep))
        return figure

    return draw


def slo_attainment(sweep: Sweep) -> Figure | None:
    """Share of requests within the limits, both and each alone, with the rate at which a deployment falls below 90 %."""
    if not sweep.limits:
        return None
    best = {series.name: best_rate(series) for series in sweep.series}
    words = [
        f"{style.elided(series.name)} {'≥ ' if beyond(series) else ''}{number(best[series.name]) if best[series.name] else tr('none')}"
        for series in sorted(sweep.series, key=lambda series: best[series.name] or 0, reverse=True)[:3]
    ]
    limits = joined(f"{name.upper()} ≤ {limit:g} ms" for name, limit in sweep.limits.items())
    title = tr(
        "Highest rate per GPU with {share} of requests within the limits: {runs} req/s",
        share=percent(ATTAINMENT),
        runs=joined(words),
    )
    figure = canvas(
        sweep,
        title,
        tr("{limits}; failures never meet one. {requests}.", limits=limits, requests=short(sweep)),
        3.2,
        entries=3,
    )
    axes = figure.subplots()
    for position, series in enumerate(sweep.series):
        for name, line in _LINES.items():
            if name != "both" and name not in sweep.limits:
                continue
            chosen = sweep.limits if name == "both" else {name: sweep.limits[name]}
            points = series.points(_attained(chosen))
            axes.plot(
                *xy(points),
                color=style.run_colour(position),
                linestyle=line,
                marker=style.run_marker(position) if name == "both" else None,
                markeredgecolor=style.PAPER,
                linewidth=2.1 if name == "both" else 1.3,
                zorder=3,
            )
        if (rate := best[series.name]) is not None and not beyond(series):
            axes.axvline(rate, color=style.run_colour(position), linewidth=1, alpha=0.6, zorder=1)
    axes.axhline(ATTAINMENT * 100, color=style.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    style.quiet(axes)
    axes.set_ylim(0, 104)
    axes.set_ylabel(tr("Requests within the limits, %"))
    rates(axes)
    kinds = [Line2D([], [], color=style.INK, linestyle=_LINES["both"], label=tr("all limits"))]
    kinds += [
        Line2D([], [], color=style.INK, linestyle=_LINES[name], label=tr("{limit} alone", limit=name.upper()))
        for name in ("ttft", "tpot")
        if name in sweep.limits
    ]
    style.key(figure, [*handles(sweep), *kinds])
    return figure


def _latency(name: str, percentile: int) -> Get:
    return lambda result: result.metrics.latencies[name.upper()].at(percentile)


def _attained(limits: Mapping[str, float]) -> Get:
    return lambda result: attainment(result, limits) * 100


def goodput(sweep: Sweep) -> Figure | None:
    """Requests within all limits a second and GPU; on the diagonal nothing is missed."""
    peaks = {series.name: max((y for _, y in series.points(_goodput)), default=None) for series in sweep.series}
    if not any(peak is not None for peak in peaks.values()):
        return None
    words = joined(f"{style.elided(name)} {number(peak)}" for name, peak in list(peaks.items())[:3])
    figure = canvas(
        sweep,
        tr("Most goodput per GPU: {runs} req/s", runs=words),
        tr("{requests}. Grey: all that was offered.", requests=short(sweep)),
        3.1,
    )
    axes = figure.subplots()
    lines(axes, sweep, _goodput, draws=of_rate("good", _good_per_gpu))
    end = max(x for series in sweep.series for x, _ in series.points(_goodput))
    axes.plot([0, end], [0, end], color=style.GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    rise(axes, tr("Goodput per GPU, req/s"), None)
    style.key(figure, handles(sweep))
    return figure


def _goodput(result: Result) -> float | None:
    return result.metrics.per_gpu(result.metrics.goodput)


def _good_per_gpu(result: Result) -> float | None:
    return result.metrics.per_gpu(1 / result.metrics.window_s) if result.metrics.window_s > 0 else None


def pareto(sweep: Sweep) -> Figure | None:
    """Output tokens a second and GPU against those of one reader: further up and right is better."""
    figure = canvas(
        sweep,
        tr("Throughput against interactivity: further up and to the right is better"),
        tr("One point a rate; a reader's tokens a second are 1 / median TPOT. {requests}.", requests=short(sweep)),
        3.4,
    )
    axes = figure.subplots()
    drawn = False
    for position, series in enumerate(sweep.series):
        points = [
            (1 / tpot, rate, label_of(result))
            for result in series.results
            if (tpot := result.metrics.latencies["TPOT"].at(50))
            and (rate := result.metrics.per_gpu(result.metrics.output_rate)) is not None
        ]
        drawn = drawn or bool(points)
        labelled(axes, points, position)
    style.quiet(axes)
    axes.grid(visible=True)
    axes.set_xlabel(tr("Output tokens a second of one reader"))
    axes.set_ylabel(tr("Output tokens a second and GPU"))
    axes.margins(0.1, 0.12)
    style.key(figure, handles(sweep))
    return figure if drawn else None


def energy_by_role(sweep: Sweep) -> Figure | None:
    """Joules a token against the rate: of the whole, and of each role's own work."""
    whole = joules(lambda tokens: tokens.per_output)
    if not any(series.points(whole) for series in sweep.series):
        return None
    figure = canvas(
        sweep,
        tr("Joules per token against the rate per GPU"),
        tr(
            "Left: all GPUs, per output token. Right: each role's GPUs, per token of its own work. {requests}.",
            requests=short(sweep),
        ),
        3.1,
        entries=3,
    )
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.22})
    lines(left, sweep, whole)
    rise(left, tr("J per output token"), None)
    own: dict[Role, Get] = {
        Role.PREFILL: joules(lambda tokens: tokens.prefill_per_prompt),
        Role.DECODE: joules(lambda tokens: tokens.decode_per_output),
        Role.COMBINED: joules(lambda tokens: tokens.combined_per_token),
    }
    used = [role for role, get in own.items() if any(series.points(get) for series in sweep.series)]
    for role in used:
        for position, series in enumerate(sweep.series):
            marker = style.run_marker(position)
            right.plot(
                *xy(series.points(own[role])),
                color=style.ROLE_COLOURS[role],
                marker=marker,
                markeredgecolor=style.PAPER,
                zorder=3,
            )
    rise(right, tr("J per token of the role's own work"), None)
    work = {Role.PREFILL: tr("prefill, per prompt token"), Role.DECODE: tr("decode, per output token")}
    roles = [
        Line2D([], [], color=style.ROLE_COLOURS[role], label=work.get(role, tr("combined, per token, both")))
        for role in used
    ]
    style.key(figure, [*handles(sweep), *roles])
    return figure


def energy_against_slo(sweep: Sweep) -> Figure | None:
    """What keeping the limits costs: joules an output token against the share of requests within them."""
    whole = joules(lambda tokens: tokens.per_output)
    if not sweep.limits or not any(series.points(whole) for series in sweep.series):
        return None
    figure = canvas(
        sweep,
        tr("Energy against attainment: further down and to the right is better"),
        tr("One point a rate. {requests}.", requests=short(sweep)),
        3.4,
    )
    axes = figure.subplots()
    for position, series in enumerate(sweep.series):
        points = [
            (100 * share, joules_, label_of(result))
            for result in series.results
            if (share := result.metrics.attainment) is not None and (joules_ := whole(result)) is not None
        ]
        labelled(axes, points, position)
    axes.axvline(ATTAINMENT * 100, color=style.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
    style.quiet(axes)
    axes.grid(visible=True)
    axes.set_xlabel(tr("Requests within all limits, %"))
    axes.set_ylabel(tr("J per output token"))
    axes.set_ylim(bottom=0)
    axes.margins(0.1, 0.15)
    style.key(figure, handles(sweep))
    return figure
