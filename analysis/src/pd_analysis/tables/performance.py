"""Latencies, rates, stages and failures of the runs of one load."""

from typing import Final

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.metrics import Distribution, StageMeans
from pd_analysis.records.columns import STAGES
from pd_analysis.tables.table import Table, table
from pd_analysis.words.formatting import ms, number, percent, whole
from pd_analysis.words.formulas import defined, formula
from pd_analysis.words.language import mark, tr
from pd_contracts.latency import PERCENTILES

STAGE_NAMES: Final = {
    "queue": mark("Proxy queue"),
    "prefill": mark("Prefill"),
    "kv_and_first_decode": mark("KV + first decode"),
    "decode": mark("Decode"),
}
_PERCENTILE_HEADS: Final = tuple(f"p{percentile}" for percentile in PERCENTILES)


def percentiles(result: Result) -> Table:
    """Every latency of one run, with its definition beside it."""
    header = ["ms", tr("Values"), tr("Mean"), *_PERCENTILE_HEADS, tr("Definition")]
    rows = [[tr(name), *_spread(values), formula(name)] for name, values in result.metrics.latencies.items()]
    return table(tr("{run}: latency", run=result.name), header, rows, {0, len(header) - 1})


def _spread(values: Distribution) -> list[str]:
    return [whole(values.count), ms(values.mean), *(ms(values.at(percentile)) for percentile in PERCENTILES)]


def rates(group: Group) -> Table:
    """Throughput and goodput, of the deployment and per GPU."""
    header = ["", tr("Unit"), *(head for result in group.results for head in (result.name, tr("per GPU")))]
    names = (tr("Requests"), tr("Output tokens"), tr("All tokens"), tr("Goodput"))
    units = ("req/s", "tok/s", "tok/s", "req/s")
    columns = [
        (metrics.request_rate, metrics.output_rate, metrics.token_rate, metrics.goodput)
        for metrics in (result.metrics for result in group.results)
    ]
    rows = []
    for number_, (name, unit) in enumerate(zip(names, units, strict=True)):
        values = [
            text
            for result, column in zip(group.results, columns, strict=True)
            for text in (number(column[number_]), number(result.metrics.per_gpu(column[number_])))
        ]
        rows.append([name, unit, *values])
    caption = defined(("Throughput", "Per GPU", "Goodput"))
    return table(tr("Throughput and goodput"), header, rows, {0, 1}, caption)


def stages(group: Group) -> Table | None:
    """The stages of requests as the proxy timed them; None if no run has them."""
    header = ["ms", tr("Requests"), *map(tr, STAGE_NAMES.values()), tr("Sum")]
    rows = []
    for result in group.results:
        means = result.metrics.stage_means
        if means:
            rows += [_stage_row(tr("{run}, mean", run=result.name), means["all"])]
            rows += [
                [
                    tr("{run}, p{percentile} of each stage", run=result.name, percentile=percentile),
                    "",
                    *(ms(result.metrics.stages[stage].at(percentile)) for stage in STAGES),
                    "",
                ]
                for percentile in PERCENTILES
            ]
            rows += [_stage_row(tr("{run}, mean of the slowest 1%", run=result.name), means["slowest"])]
    caption = tr(
        "{definition} Percentiles of stages do not sum to a percentile of the whole. A combined engine hides its prefill in the first decode.",
        definition=defined(("Stages",)),
    )
    return table(tr("Stages of a request"), header, rows, {0}, caption) if rows else None


def _stage_row(name: str, means: StageMeans) -> list[str]:
    return [name, whole(means.requests), *(number(means.stages[stage]) for stage in STAGES), number(means.total)]


def failures(group: Group) -> Table:
    """What failed, by kind, with the first message of each."""
    rows = []
    for result in group.results:
        measured = result.requests.measured
        failed = measured[~measured["ok"]]
        for kind, part in failed.groupby("failure", sort=False):
            rows.append(
                [
                    result.name,
                    str(kind),
                    whole(len(part)),
                    percent(len(part) / len(measured)),
                    tr(str(part["failure_message"].iloc[0])),
                ]
            )
        if failed.empty:
            rows.append([result.name, tr("none"), "0", "0%", ""])
    return table(tr("Failures"), ["", tr("Kind"), tr("Requests"), tr("Share"), tr("First message")], rows, {0, 1, 4})
