"""The answer in a terminal: the verdict, its doubts, and one table."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pd_analysis.tables.table import Table
from pd_analysis.words.language import mark, tr
from pd_planner.report.tables import WHY_NOT

ROWS: Final = 8
_HEADER: Final = 9  # letters of a line of a column's name
_BETWEEN: Final = 2  # columns of the terminal between two of the table
_NARROW: Final = 110  # columns; below it the least needed columns are left out
_LEFT_OUT: Final = (mark("TTFT p50, ms"), mark("TPOT p50, ms"), "W", WHY_NOT)


def show(console: Console, verdict: Sequence[str], doubts: Sequence[str], ranked: Table, held_out: str) -> None:
    """Print it; what the table says of its first rows is enough here, the page has all."""
    first, *rest = verdict
    console.print(Text.assemble((" " + tr("SIMULATED") + " ", "bold reverse"), " ", (first, "bold")))
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
    headers = [textwrap.fill(table.header[number], _HEADER, break_long_words=False) for number in kept]
    cells = [(header, *(row[number].text for row in table.rows)) for header, number in zip(headers, kept, strict=True)]
    widths = _widths(cells, width - _BETWEEN * len(kept))
    for number, header, cells_wide in zip(kept, headers, widths, strict=True):
        justify: Literal["left", "right"] = "left" if number in table.words else "right"
        shown.add_column(header, justify=justify, overflow="fold", width=cells_wide)
    for row in table.rows:
        shown.add_row(*(Text(row[number].text) for number in kept))
    return shown


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """As wide as each column's longest line; if that is too much, the widest are narrowed first, and none below its longest word."""
    least = [max((cell_len(word) for text in texts for word in text.split()), default=1) for texts in columns]
    found = [max((cell_len(line) for text in texts for line in text.splitlines()), default=1) for texts in columns]
    while sum(found) > room:
        able = [number for number, words in enumerate(least) if found[number] > words]
        if not able:
            break
        found[max(able, key=found.__getitem__)] -= 1
    return found
