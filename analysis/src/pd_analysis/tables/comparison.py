"""Deployments beside each other: the key numbers with their ratios, and every run in one line."""

from collections.abc import Sequence
from typing import Final

from pd_analysis.numbers.evaluation import Group, Result
from pd_analysis.numbers.measures import COMPARED, DECIDING, Comparison, compared
from pd_analysis.tables.table import Cell, Table, table
from pd_analysis.words import formulas
from pd_analysis.words.formatting import number, ratio, setting, sizes, whole
from pd_contracts.names import Topology

_DEFINED_TO: Final = 2  # runs, up to which the comparison has room for a column of definitions


def comparison(group: Group) -> Table:
    """Key numbers of every run, with the ratio to the baseline."""
    defined = len(group.results) <= _DEFINED_TO
    pairs = [
        name
        for other in group.others
        for name in (other.name, f"÷ {group.baseline.name}", *(["95 % of ratios"] if defined else []))
    ]
    header = ["", "Unit", group.baseline.name, *pairs, *(["Definition"] if defined else [])]
    rows = []
    for measure in COMPARED:
        cells: list[str | Cell] = [measure.title, measure.unit, measure.text(group.baseline)]
        for other in group.others:
            pair = compared(measure, group.baseline, other)
            cells += [measure.text(other), ratio_cell(pair), *([_interval(pair)] if defined else [])]
        rows.append([*cells, *([formulas.ALL[measure.formula]] if defined else [])])
    return table("Key numbers", header, rows, {0, 1, len(header) - 1} if defined else {0, 1})


def _interval(pair: Comparison) -> str:
    return "" if pair.interval is None else f"{ratio(pair.interval[0])} to {ratio(pair.interval[1])}"


def overview(groups: Sequence[Group]) -> Table:
    """Every run of every workload in the numbers that decide, in the order of request sizes, GPUs and rates."""
    results = sorted((result for group in groups for result in group.results), key=_place)
    workloads = [result.run.manifest.workload for result in results]
    kinds = dict.fromkeys(f"{load.dataset} data, {load.arrival} arrivals, {load.endpoint}" for load in workloads)
    columns = ["Data, arrivals and API"] if len(kinds) > 1 else []
    header = ["Tokens", "Run", "Requests/s", "per GPU", "Requests", "Failed", *columns]
    header += [f"{measure.title}, {measure.unit}" for measure in DECIDING]
    rows = [
        [
            sizes(load),
            result.label,
            setting(load.rate),
            number(result.metrics.per_gpu(load.rate)),
            whole(result.metrics.requests),
            whole(sum(result.metrics.failures.values())),
            *([f"{load.dataset} data, {load.arrival} arrivals, {load.endpoint}"] if columns else []),
            *(measure.text(result) for measure in DECIDING),
        ]
        for result, load in zip(results, workloads, strict=True)
    ]
    caption = "" if columns else f"{next(iter(kinds))}."
    return table("Every run", header, rows, {0, 1, 6} if columns else {0, 1}, caption[:1].upper() + caption[1:])


def _place(result: Result) -> tuple[int, int, int, bool, str, float]:
    load = result.run.manifest.workload
    return (
        load.input_tokens or 0,
        load.output_tokens or 0,
        result.metrics.gpus or 0,
        result.topology is not Topology.COMBINED,
        result.label,
        load.rate,
    )


def ratio_cell(pair: Comparison) -> Cell:
    """The ratio, and in words what it means for the compared run."""
    if pair.equal:
        return Cell(f"{ratio(pair.ratio)} equal", "equal")
    if pair.winner is None:
        return Cell(ratio(pair.ratio))
    word = "better" if pair.winner is pair.other else "worse"
    return Cell(word if pair.ratio is None else f"{ratio(pair.ratio)} {word}", word)
