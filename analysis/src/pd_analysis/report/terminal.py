"""The closing table of a terminal session: the key numbers of some runs, within 100 columns."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pd_analysis.conclusions.modes import of_mode
from pd_analysis.conclusions.short import of_loads
from pd_analysis.conclusions.verdict import verdict
from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.many_loads import never_together, overall
from pd_analysis.doubts.one_load import cases, doubts
from pd_analysis.numbers.comparison import Comparison, compared
from pd_analysis.numbers.evaluation import Group, Result, grouped
from pd_analysis.numbers.load import MODES
from pd_analysis.numbers.measures import COMPARED, DECIDING
from pd_analysis.numbers.sweep import sweeps
from pd_analysis.report.chapters import with_chapter
from pd_analysis.tables.comparison import ratio_cell
from pd_analysis.words.formatting import sentences
from pd_analysis.words.formatting import whole as count
from pd_analysis.words.language import ntr, tr

COLUMNS: Final = 100
_NAME: Final = 14  # longer names of runs are cut in the middle of a word rather than making the table wider
_RATIOS_TO: Final = 2  # runs, up to which the second has a ratio beside it
_SIDE_BY_SIDE: Final = 4  # runs, up to which each is a column; with more, each is a row
_TITLES: Final = (
    *("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "Longest gap p99", "E2EL p99"),
    *("Requests per GPU", "Output tokens per GPU", "Goodput per GPU", "Energy per output token", "Mean power per GPU"),
)
_ROWS: Final = tuple(measure for measure in COMPARED if measure.key in _TITLES)
_LEVELS: Final = {Level.STOP: "red", Level.CARE: "yellow"}
_STYLES: Final = {"better": "green", "worse": "yellow", "equal": "dim", "unclear": "dim", "": ""}


def whole(console: Console, group: Group) -> None:
    """Everything about one load: its table, what decides, and the doubts."""
    found = doubts(group)
    if group.pace not in MODES:
        console.print(table_of(group))
    else:
        console.print(_title(group))
    for text in of_mode(group) or [pair.lead for pair in verdict(group, found).pairs]:
        console.print(text, highlight=False, markup=False)
    _print(console, found)


def wholes(console: Console, groups: Sequence[Group]) -> None:
    """Everything about each load, and then why nothing is compared, if no two deployments had the same one."""
    for group in groups:
        whole(console, group)
    _print(console, list(never_together(groups)))


def brief(console: Console, results: Sequence[Result]) -> None:
    """The deciding findings over all loads, and the doubts about them."""
    groups = grouped(results)
    found = doubts(groups[0]) if len(groups) == 1 else overall(groups, chain.from_iterable(map(cases, groups)))
    short = of_loads(sweeps(results), with_chapter(groups), found)
    if any(group.simulated for group in groups):
        console.print(Text(tr("SIMULATED"), style="bold red"))
    for text in short.sentences:
        console.print(text, highlight=False, markup=False)
    _print(console, [doubt for doubt in found if doubt.level is Level.STOP])
    fewer = sum(doubt.level is not Level.STOP for doubt in found)
    if fewer:
        text = ntr(
            "Read with care: the report names {count} doubt.", "Read with care: the report names {count} doubts.", fewer
        )
        console.print(text, highlight=False, markup=False)


def where(console: Console, report: Path) -> None:
    """The report's path, not wrapped, so that it can be copied."""
    console.print(tr("Report: {path}", path=report), highlight=False, markup=False, soft_wrap=True)


def _print(console: Console, found: Sequence[Doubt]) -> None:
    for doubt in found:
        places = tr("Where: {places}.", places=doubt.places) if doubt.places else ""
        text = sentences(filter(None, (doubt.sentence, doubt.remedy, places)))
        said = tr("{level}: {text}", level=doubt.level.words, text=text)
        console.print(f"- {said}", style=_LEVELS[doubt.level], highlight=False, markup=False)


def table_of(group: Group) -> Table:
    """As `closing_table`, for runs that are measured already."""
    return _beside(group) if len(group.results) <= _SIDE_BY_SIDE else _below(group)


def _title(group: Group) -> Text:
    text = Text(group.workload, style="bold")
    return Text(tr("SIMULATED") + "  ", style="bold red") + text if group.simulated else text


def _new(group: Group) -> Table:
    return Table(title=_title(group), title_justify="left", header_style="bold", width=None)


def _beside(group: Group) -> Table:
    table = _new(group)
    with_ratios = len(group.results) <= _RATIOS_TO
    table.add_column("", no_wrap=True)
    table.add_column(_cut(group.baseline.name), justify="right", no_wrap=True)
    for other in group.others:
        table.add_column(_cut(other.name), justify="right", no_wrap=True)
        if with_ratios:
            table.add_column(f"÷ {_cut(group.baseline.name)}", justify="right", no_wrap=True)
    table.add_row(
        tr("Requests (failed)"), *_spread(group, [_counts(group, position) for position in range(len(group.results))])
    )
    for measure in _ROWS:
        pairs = [compared(measure, group.baseline, other) for other in group.others] if with_ratios else []
        values = [measure.text(result) for result in group.results]
        table.add_row(measure.head, *_spread(group, values, pairs))
    return table


def _below(group: Group) -> Table:
    table = _new(group)
    table.add_column("", no_wrap=True)
    table.add_column(tr("Failed"), justify="right")
    for measure in DECIDING:
        table.add_column(measure.head, justify="right")
    for result in group.results:
        failed = count(sum(result.metrics.failures.values()))
        table.add_row(_cut(result.name, 2 * _NAME), failed, *(measure.text(result) for measure in DECIDING))
    return table


def _counts(group: Group, position: int) -> str:
    metrics = group.results[position].metrics
    return f"{count(metrics.requests)} ({count(sum(metrics.failures.values()))})"


def _spread(group: Group, values: Sequence[str], pairs: Sequence[Comparison] = ()) -> list[Text | str]:
    """Values with a ratio behind each but the first, or with an empty cell where the row has none."""
    if len(group.results) > _RATIOS_TO:
        return list(values)
    cells: list[Text | str] = [values[0]]
    for number, value in enumerate(values[1:]):
        cells += [value, _ratio(pairs[number]) if pairs else ""]
    return cells


def _ratio(pair: Comparison) -> Text:
    cell = ratio_cell(pair)
    return Text(cell.text, style=_STYLES[cell.tone])


def _cut(name: str, most: int = _NAME) -> str:
    """A name that fits, and in which rich finds no markup."""
    return escape(name if len(name) <= most else name[: most - 1] + "…")
