"""A table as data; `report` writes the same ones as HTML and as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A text.

    Attributes:
        tone: better, worse, equal, unclear or ""; the text says it too, so that no colour carries a meaning alone.
        run: place in its group of the run that the cell is about, whose colour it then shows.
    """

    text: str
    tone: str = ""
    run: int | None = None


@dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
        header: one per column; the first column names the row.
        words: columns (from 0) that hold words, to be set left; the others hold numbers, to be set right.
        caption: a sentence under the title, or "".
        merge: cells of a row that all say the same may be shown as one.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: frozenset[int] = frozenset({0})
    caption: str = ""
    merge: bool = False


def table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str | Cell]], words: Iterable[int], caption: str = ""
) -> Table:
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(title=title, header=tuple(header), rows=cells, words=frozenset(words), caption=caption)
