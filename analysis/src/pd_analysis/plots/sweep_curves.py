"""A sweep's figures: latency, attainment, throughput and goodput against what was asked for."""

from collections.abc import Callable, Mapping
from typing import Final

from matplotlib.figure import Figure

from pd_analysis.numbers.bootstrap import of_percentile, of_rate
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.slo_attainment import attainment
from pd_analysis.numbers.sweep import ATTAINMENT, Get, Sweep, best_rate, beyond, xy
from pd_analysis.plots import palette, style
from pd_analysis.plots.sweep_axes import along, canvas, curve, handles, lines, rise, shaded, short
from pd_analysis.plots.titles import best_first
from pd_analysis.words.formatting import joined, ms, number, percent, setting
from pd_analysis.words.language import mark, tr

_ALONE_TO: Final = 3  # deployments up to which the limits are drawn one by one, too
_LINES: Final[dict[str, palette.LineStyle]] = {"ttft": (0, (1.2, 1.4)), "tpot": (0, (5, 1.6))}


def latency(percentile: int) -> Callable[[Sweep], Figure | None]:
    """TTFT and TPOT at a percentile, side by side."""

    def draw(sweep: Sweep) -> Figure | None:
        if not any(series.points(_latency(name, percentile)) for series in sweep.series for name in ("ttft", "tpot")):
            return None
        figure = canvas(sweep, _latency_title(sweep, percentile), _latency_subtitle(sweep), 3.1, right=0.55)
        for axes, name in zip(figure.subplots(1, 2, gridspec_kw={"wspace": 0.34}), ("ttft", "tpot"), strict=True):
            lines(axes, sweep, _latency(name, percentile), draws=of_percentile(name, percentile), scale=1e3)
            rise(axes, sweep, f"{name.upper()} p{percentile}, ms", sweep.limits.get(name))
        style.key(figure, handles(sweep))
        return figure

    return draw


def _latency_title(sweep: Sweep, percentile: int) -> str:
    place = headline_place(sweep)
    if place is None:
        return tr("TTFT and TPOT p{percentile}", percentile=percentile)
    each = [(series.name, dict(series.points(_latency("ttft", percentile))).get(place)) for series in sweep.series]
    return tr(
        "TTFT p{percentile} at {place} {unit}: {runs}",
        percentile=percentile,
        place=setting(place),
        unit=sweep.axis.unit,
        runs=best_first(each, lambda seconds: f"{ms(seconds)} ms"),
    )


def _latency_subtitle(sweep: Sweep) -> str:
    message = mark("{requests}. Shaded: 95% bootstrap interval. Hollow: not for decisions.")
    return tr(message if shaded(sweep) else mark("{requests}. Hollow: not for decisions."), requests=short(sweep))


def headline_place(sweep: Sweep) -> float | None:
    """The load that the title compares: the highest that all deployments have and one still meets the limits at; else the middle one."""
    places = [{x for x, _ in series.points(lambda result: result.load.amount)} for series in sweep.series]
    common = sorted(set.intersection(*places)) if places else []
    kept = [
        place
        for place in common
        if any((dict(series.points(_attainment)).get(place) or 0.0) >= ATTAINMENT for series in sweep.series)
    ]
    if kept:
        return kept[-1]
    return common[len(common) // 2] if common else None


def _attainment(result: Result) -> float | None:
    return result.metrics.attainment


def slo_attainment(sweep: Sweep) -> Figure | None:
    """Share of requests within the limits, and where a deployment falls below 90%; of few deployments each limit alone, too."""
    if not sweep.limits:
        return None
    limits = joined(f"{name.upper()} ≤ {limit:g} ms" for name, limit in sweep.limits.items())
    each_alone = len(sweep.series) <= _ALONE_TO
    message = (
        mark("{limits}; failed requests never meet them. {requests}. Dotted: TTFT alone. Dashed: TPOT alone.")
        if each_alone
        else mark("{limits}; failed requests never meet them. {requests}.")
    )
    figure = canvas(sweep, _attainment_title(sweep), tr(message, limits=limits, requests=short(sweep)), 3.2)
    axes = figure.subplots()
    lines(axes, sweep, _attained(sweep.limits))
    for position, series in enumerate(sweep.series if each_alone else ()):
        for name in sweep.limits.keys() & _LINES.keys():
            points = xy(series.points(_attained({name: sweep.limits[name]})))
            axes.plot(*points, color=palette.run_colour(position), linestyle=_LINES[name], linewidth=1.2, zorder=2)
    axes.axhline(ATTAINMENT * 100, color=palette.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    style.quiet(axes)
    axes.set_ylim(0, 104)
    axes.set_ylabel(tr("Requests within the limits, %"))
    along(axes, sweep)
    style.key(figure, handles(sweep))
    return figure


def _attainment_title(sweep: Sweep) -> str:
    best = {series.name: best_rate(series) for series in sweep.series}
    more = {series.name for series in sweep.series if beyond(series)}
    ranked = sorted(((rate, name) for name, rate in best.items() if rate), reverse=True)
    if not ranked:
        return tr("No deployment meets the limits for {share} of requests", share=percent(ATTAINMENT))
    words = [f"{style.elided(name)} {'≥ ' if name in more else ''}{number(rate)}" for rate, name in ranked[:3]]
    return tr(
        "{share} of requests are within the limits up to: {runs} {unit}",
        share=percent(ATTAINMENT),
        runs=joined(words),
        unit=sweep.axis.unit,
    )


def _latency(name: str, percentile: int) -> Get:
    return lambda result: result.metrics.latencies[name.upper()].at(percentile)


def _attained(limits: Mapping[str, float]) -> Get:
    return lambda result: attainment(result, limits) * 100


def goodput(sweep: Sweep) -> Figure | None:
    """Requests within all limits a second; along a rate, nothing is missed on the diagonal."""
    get = _share(sweep, lambda result: result.metrics.goodput)
    peaks = [(series.name, max((y for _, y in series.points(get)), default=None)) for series in sweep.series]
    if not any(peak is not None for _, peak in peaks):
        return None
    unit = tr("req/s per GPU") if sweep.axis.per_gpu else tr("req/s")
    title = tr("Most goodput: {runs}", runs=best_first(peaks, lambda value: f"{number(value)} {unit}", less=False))
    rated = sweep.axis.pace is Pace.RATE
    message = mark("{requests}. Grey: the rate that was set.") if rated else mark("{requests}.")
    figure = canvas(sweep, title, tr(message, requests=short(sweep)), 3.1)
    axes = figure.subplots()
    lines(axes, sweep, get, draws=of_rate("good", _share(sweep, _good)))
    if rated:
        end = max(x for series in sweep.series for x, _ in (*series.points(get), *series.unfit_points(get)))
        axes.plot([0, end], [0, end], color=palette.GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    rise(axes, sweep, tr("Goodput per GPU, req/s") if sweep.axis.per_gpu else tr("Goodput, req/s"))
    style.key(figure, handles(sweep))
    return figure


def _good(result: Result) -> float | None:
    return 1 / result.metrics.window_s if result.metrics.window_s > 0 else None


def _share(sweep: Sweep, get: Get) -> Get:
    return lambda result: sweep.axis.share(result, get(result))


def _output(sweep: Sweep) -> Get:
    return _share(sweep, lambda result: result.metrics.output_rate)


def throughput(sweep: Sweep) -> Figure | None:
    """Output tokens per second against what was asked for."""
    get = _output(sweep)
    peaks = [(series.name, max((y for _, y in series.points(get)), default=None)) for series in sweep.series]
    if not any(peak is not None for _, peak in peaks):
        return None
    unit = tr("tok/s per GPU") if sweep.axis.per_gpu else tr("tok/s")
    title = tr(
        "Most output tokens: {runs}", runs=best_first(peaks, lambda value: f"{number(value)} {unit}", less=False)
    )
    figure = canvas(sweep, title, tr("{requests}.", requests=short(sweep)), 3.1)
    axes = figure.subplots()
    lines(axes, sweep, get)
    rise(axes, sweep, tr("Output tokens per second per GPU") if sweep.axis.per_gpu else tr("Output tokens per second"))
    style.key(figure, handles(sweep))
    return figure


def pareto(sweep: Sweep) -> Figure | None:
    """Output tokens per second per GPU against those of one user: further up and right is better."""
    rate = _output(sweep)
    curves = [
        [
            (1 / tpot, tokens)
            for result in series.results
            if not result.unfit
            and (tpot := result.metrics.latencies["TPOT"].at(50))
            and (tokens := rate(result)) is not None
        ]
        for series in sweep.series
    ]
    if not any(curves):
        return None
    slowest = 1e3 / sweep.limits["tpot"] if "tpot" in sweep.limits else None
    figure = canvas(sweep, _pareto_title(sweep, curves, slowest), _pareto_subtitle(sweep, slowest), 3.6)
    axes = figure.subplots()
    for position, points in enumerate(curves):
        curve(axes, points, position)
    if slowest is not None:
        axes.axvline(slowest, color=palette.INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    style.quiet(axes)
    axes.grid(visible=True)
    axes.set_xlabel(tr("Output tokens per second per user"))
    axes.set_ylabel(tr("Output tokens per second per GPU") if sweep.axis.per_gpu else tr("Output tokens per second"))
    axes.margins(0.08, 0.1)
    axes.set_ylim(bottom=0)
    style.grouped(axes.yaxis)
    style.key(figure, handles(sweep))
    return figure


def _pareto_title(sweep: Sweep, curves: list[list[tuple[float, float]]], slowest: float | None) -> str:
    if slowest is None:
        return tr("Throughput against interactivity: further up and to the right is better")
    most = [
        (series.name, max((tokens for speed, tokens in points if speed >= slowest), default=None))
        for series, points in zip(sweep.series, curves, strict=True)
    ]
    unit = tr("tok/s per GPU") if sweep.axis.per_gpu else tr("tok/s")
    runs = best_first(most, lambda value: f"{number(value)} {unit}", less=False)
    return tr("Most output with {speed} tok/s or more for the median user: {runs}", speed=number(slowest), runs=runs)


def _pareto_subtitle(sweep: Sweep, slowest: float | None) -> str:
    message = (
        mark("Per user: 1 / median TPOT. Least load at the right. Dotted: TPOT limit. {requests}.")
        if slowest is not None
        else mark("Per user: 1 / median TPOT. Least load at the right. {requests}.")
    )
    return tr(message, requests=short(sweep))
