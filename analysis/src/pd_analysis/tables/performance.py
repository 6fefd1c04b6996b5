"""Latencies, rates, stages and failures of the runs of one load."""

from typing import Final

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.metrics import Distribution, StageMeans
from pd_analysis.records.columns import STAGES
from pd_analysis.tables.table import Table, table
from pd_analysis.words import formulas
from pd_analysis.words.formatting import ms, number, percent, whole
from pd_contracts.latency import FORMULAS, PERCENTILES

STAGE_NAMES: Final = {
    "queue": "Proxy queue",
    "prefill": "Prefill",
    "kv_and_first_decode": "KV + first decode",
    "decode": "Decode",
}
_PERCENTILE_HEADS: Final = tuple(f"p{percentile}" for percentile in PERCENTILES)


def percentiles(result: Result) -> Table:
    """Every latency of one run, with its definition beside it."""
    header = ["ms", "Values", "Mean", *_PERCENTILE_HEADS, "Definition"]
    rows = [[name, *_spread(values), FORMULAS[name]] for name, values in result.metrics.latencies.items()]
    return table(f"{result.name}: latency", header, rows, {0, len(header) - 1})


def _spread(values: Distribution) -> list[str]:
    return [whole(values.count), ms(values.mean), *(ms(values.at(percentile)) for percentile in PERCENTILES)]


def rates(group: Group) -> Table:
    """What was served a second, by the deployment and by each of its GPUs."""
    header = ["", "Unit", *(head for result in group.results for head in (result.name, "per GPU"))]
    names = ("Requests", "Output tokens", "All tokens", "Goodput")
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
    caption = f"Throughput: {FORMULAS['Throughput']}. Per GPU: {formulas.PER_GPU}. Goodput: {FORMULAS['Goodput']}."
    return table("Throughput and goodput", header, rows, {0, 1}, caption)


def stages(group: Group) -> Table | None:
    """Where time went, as the proxy saw it; None if no run has it."""
    header = ["ms", "Requests", *STAGE_NAMES.values(), "Sum"]
    rows = []
    for result in group.results:
        means = result.metrics.stage_means
        if means:
            rows += [_stage_row(f"{result.name}, mean", means["all"])]
            rows += [
                [
                    f"{result.name}, p{percentile} of each stage",
                    "",
                    *(ms(result.metrics.stages[stage].at(percentile)) for stage in STAGES),
                    "",
                ]
                for percentile in PERCENTILES
            ]
            rows += [_stage_row(f"{result.name}, mean of the slowest 1 %", means["slowest"])]
    caption = f"Stages: {formulas.COUNTING['Stages']}. Percentiles of stages do not sum to a percentile of the whole. A combined engine hides its prefill in the first decode."
    return table("Stages of a request", header, rows, {0}, caption) if rows else None


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
                    str(part["failure_message"].iloc[0]),
                ]
            )
        if failed.empty:
            rows.append([result.name, "none", "0", "0 %", ""])
    return table("Failures", ["", "Kind", "Requests", "Share", "First message"], rows, {0, 1, 4})
