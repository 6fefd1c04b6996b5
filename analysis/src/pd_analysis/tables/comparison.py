"""Deployments beside each other: the key numbers with their ratios, and every run in one line."""

from collections.abc import Sequence
from typing import Final

from pd_analysis.numbers.comparison import OUTCOMES, Comparison, Outcome, compared
from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.load import MODES, Pace, amount_words, pace_of
from pd_analysis.numbers.measures import COMPARED, DECIDING
from pd_analysis.tables.table import Cell, Table, table
from pd_analysis.words.formatting import DASH, number, ratio, sentence_case, sizes, whole
from pd_analysis.words.formulas import formula
from pd_analysis.words.language import tr
from pd_contracts.names import Topology
from pd_contracts.records import Workload

_DEFINED_TO: Final = 2  # runs, up to which the comparison has room for a column of definitions


def comparison(group: Group) -> Table:
    """Key numbers of every run, with the ratio to the baseline."""
    defined = len(group.results) <= _DEFINED_TO
    pairs = [
        name
        for other in group.others
        for name in (other.name, f"÷ {group.baseline.name}", *([tr("95% interval")] if defined else []))
    ]
    header = ["", tr("Unit"), group.baseline.name, *pairs, *([tr("Definition")] if defined else [])]
    rows = []
    for measure in COMPARED:
        cells: list[str | Cell] = [measure.title, measure.unit, measure.text(group.baseline)]
        for other in group.others:
            pair = compared(measure, group.baseline, other)
            cells += [measure.text(other), ratio_cell(pair), *([_interval(pair)] if defined else [])]
        rows.append([*cells, *([formula(measure.formula)] if defined else [])])
    return table(tr("Key numbers"), header, rows, {0, 1, len(header) - 1} if defined else {0, 1})


def _interval(pair: Comparison) -> str:
    return (
        ""
        if pair.interval is None
        else tr("{low} to {high}", low=ratio(pair.interval[0]), high=ratio(pair.interval[1]))
    )


def overview(groups: Sequence[Group]) -> Table:
    """Every run of every workload in the numbers that decide, in the order of request sizes, GPUs and rates."""
    results = sorted((result for group in groups for result in group.results), key=_place)
    workloads = [result.run.manifest.workload for result in results]
    kinds = dict.fromkeys(map(_kind, workloads))
    columns = [tr("Data, arrivals and API")] if len(kinds) > 1 else []
    header = [tr("Tokens"), tr("Run"), tr("Load"), tr("per GPU"), tr("Requests"), tr("Failed"), *columns]
    header += [measure.head for measure in DECIDING]
    rows = [
        [
            sizes(load),
            result.label,
            amount_words(load),
            number(result.metrics.per_gpu(result.load.amount)) if result.load.amount else DASH,
            whole(result.metrics.requests),
            whole(sum(result.metrics.failures.values())),
            *([_kind(load)] if columns else []),
            # Of modes that send requests in groups percentiles over all mean nothing; their chapters have tables of their own.
            *(DASH if result.load.pace in MODES else measure.text(result) for measure in DECIDING),
        ]
        for result, load in zip(results, workloads, strict=True)
    ]
    caption = "" if columns else tr("{what}.", what=next(iter(kinds)))
    return table(tr("Every run"), header, rows, {0, 1, 6} if columns else {0, 1}, sentence_case(caption))


def _kind(load: Workload) -> str:
    if pace_of(load) is not Pace.RATE:
        return tr("{dataset} data, {endpoint}", dataset=load.dataset, endpoint=load.endpoint)
    return tr(
        "{dataset} data, {arrival} arrivals, {endpoint}",
        dataset=load.dataset,
        arrival=load.arrival,
        endpoint=load.endpoint,
    )


def _place(result: Result) -> tuple[int, int, int, bool, str, str, float]:
    load = result.run.manifest.workload
    return (
        load.input_tokens or 0,
        load.output_tokens or 0,
        result.metrics.gpus or 0,
        result.topology is not Topology.COMBINED,
        result.label,
        result.load.pace.value,
        result.load.amount,
    )


_TONES: Final = {
    Outcome.BETTER: "better",
    Outcome.WORSE: "worse",
    Outcome.EQUAL: "equal",
    Outcome.UNCLEAR: "unclear",
    Outcome.UNKNOWN: "",
}


def ratio_cell(pair: Comparison) -> Cell:
    """The ratio, and in words what it means for the compared run."""
    if pair.bar is not None:
        return Cell(tr("not comparable"), "unclear")
    if pair.outcome is Outcome.UNKNOWN:
        return Cell(ratio(pair.ratio))
    outcome, tone = tr(OUTCOMES[pair.outcome]), _TONES[pair.outcome]
    if pair.ratio is None:
        return Cell(outcome, tone)
    return Cell(tr("{ratio} {outcome}", ratio=ratio(pair.ratio), outcome=outcome), tone)
