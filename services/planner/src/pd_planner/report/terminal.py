"""The answer in a terminal: the verdict, its doubts, and one table."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pd_analysis.tables.table import Table
from pd_analysis.words.language import mark, tr
from pd_planner.report.tables import WHY_NOT

ROWS: Final = 8
_HEADER: Final = 9  # letters of a line of a column's name
_NARROW: Final = 110  # columns; below it the least needed columns are left out
_LEFT_OUT: Final = (mark("TTFT p50, ms"), mark("TPOT p50, ms"), "W", WHY_NOT)


def show(console: Console, verdict: Sequence[str], doubts: Sequence[str], ranked: Table, held_out: str) -> None:
    """Print it; what the table says of its first rows is enough here, the page has all."""
    first, *rest = verdict
    console.print(Text.assemble((f" {tr('SIMULATED')} ", "bold reverse"), " ", (first, "bold")))
    for sentence in rest:
        console.print(sentence, highlight=False, markup=False)
    console.print()
    console.print(rich_table(replace(ranked, rows=ranked.rows[:ROWS]), console.width))
    for label, reason in _refused(ranked) if console.width < _NARROW else ():
        told = tr("not the answer ({reason}): {deployment}", deployment=label, reason=reason)
        console.print(told, highlight=False, markup=False, style="dim")
    console.print(tr("SIMULATED. {held_out}", held_out=held_out), highlight=False, markup=False, style="dim")
    for doubt in doubts:
        console.print(f"- {doubt}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _refused(ranked: Table) -> Iterator[tuple[str, str]]:
    """Deployments that cannot be the answer, by reason, of the rows that are shown."""
    if tr(WHY_NOT) not in ranked.header:
        return
    reasons: dict[str, list[str]] = {}
    for row in ranked.rows[:ROWS]:
        if row[-1].text:
            reasons.setdefault(row[-1].text, []).append(row[0].text)
    yield from ((", ".join(labels), reason) for reason, labels in reasons.items())


def rich_table(table: Table, width: int) -> RichTable:
    """A table as wide as the terminal; a narrow one has fewer columns."""
    left_out = {tr(head) for head in _LEFT_OUT} if width < _NARROW else set()
    kept = [number for number, head in enumerate(table.header) if head not in left_out]
    shown = RichTable(
        box=box.SIMPLE_HEAD,
        title=table.title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=width < _NARROW,
    )
    for number in kept:
        left = number in table.words
        header = textwrap.fill(table.header[number], _HEADER, break_long_words=False)
        longest = (
            max((len(word) for row in table.rows for word in row[number].text.split()), default=1) if left else None
        )
        shown.add_column(
            header, justify="left" if left else "right", overflow="fold", no_wrap=not left, min_width=longest
        )
    for row in table.rows:
        shown.add_row(*(Text(row[number].text) for number in kept))
    return shown
