"""The points of one deployment in a sweep."""

from pd_analysis.numbers.bootstrap import interval, of_rate
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.load import amount_words
from pd_analysis.numbers.measures import JOULES
from pd_analysis.numbers.sweep import Series
from pd_analysis.tables.table import Cell, Table
from pd_analysis.words.formatting import DASH, ms, number, percent
from pd_analysis.words.language import tr


def rate_table(series: Series) -> Table:
    """The points of one deployment: offered rate, latencies, attainment and energy."""
    axis = series.axis
    header = [tr("Load"), *([tr("per GPU")] if axis.per_gpu else [])]
    header += [f"{name} p{p}, ms" for name in ("TTFT", "TPOT") for p in (50, 90, 99)]
    header += [tr("Output tok/s per GPU") if axis.per_gpu else tr("Output tok/s")]
    header += [tr("Within limits"), tr("Goodput per GPU") if axis.per_gpu else tr("Goodput, req/s")]
    header += [tr("J / output token"), tr("Failed"), tr("Trust")]
    rows = [tuple(map(Cell, _point(series, result))) for result in series.results]
    title = tr("{run}: {heading}", run=series.name, heading=axis.heading[0].lower() + axis.heading[1:])
    return Table(title=title, header=tuple(header), rows=tuple(rows), words=frozenset({len(header) - 1}))


def _point(series: Series, result: Result) -> list[str]:
    axis, metrics = series.axis, result.metrics
    return [
        amount_words(result.run.manifest.workload),
        *([number(axis.place(result))] if axis.per_gpu else []),
        *(ms(metrics.latencies[name].at(percentile)) for name in ("TTFT", "TPOT") for percentile in (50, 90, 99)),
        number(axis.share(result, metrics.output_rate)),
        _attained(result),
        number(axis.share(result, metrics.goodput)),
        number(JOULES.get(result)),
        str(sum(metrics.failures.values())),
        tr("not for decisions") if result.unfit else tr("yes"),
    ]


def _attained(result: Result) -> str:
    share = result.metrics.attainment
    if share is None:
        return DASH
    draws = of_rate("good", lambda one: 1 / one.metrics.requests)(result)
    if draws is None:
        return percent(share)
    low, high = interval(draws)
    return tr("{share} ({low} to {high}%)", share=percent(share), low=f"{low * 100:.0f}", high=f"{high * 100:.0f}")
