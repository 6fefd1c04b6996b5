"""pdctl's terminal output: one line per step with a mark and its seconds, tables, and errors with the last log lines below."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


class Terminal:
    """The user's terminal. If stdout is a file or a pipe, a step is one line, written when it ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def say(self, text: str = "") -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold]{escape(text)}[/]")

    def note(self, text: str) -> None:
        self.console.print(Padding(f"[dim]{escape(text)}[/]", (0, 0, 0, 2), expand=False))

    def caution(self, text: str) -> None:
        """A highlighted warning."""
        self.console.print(f"[bold yellow]{escape(text)}[/]", soft_wrap=True)

    def verdict(self, ok: bool, text: str) -> None:
        """A line with a check mark or a cross."""
        self.console.print(f"{_mark(ok)} {escape(text)}", soft_wrap=True)

    def table(self, table: Table) -> None:
        self.console.print(table)

    def error(self, sentence: str, lines: Sequence[str] = ()) -> None:
        """An error message, and the last lines of the log below it."""
        self.console.print(f"{_mark(False)} {escape(sentence)}", soft_wrap=True)
        for line in lines:
            self.console.print(f"  [red]│[/] {escape(line)}", soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """A possible mistake. It goes to stderr, so that programs that read stdout are not disturbed."""
        Console(stderr=True, highlight=False).print(f"[yellow]![/] {escape(sentence)}", soft_wrap=True)

    @contextmanager
    def step(self, text: str, *, spinner: bool = True) -> Iterator["Step"]:
        """A step. Its line ends with a check mark, or with a cross if it raised.

        A spinner runs meanwhile, unless the step lets another program write to the terminal.
        """
        begin = time.monotonic()
        status = self.console.status(escape(text), spinner_style="cyan")
        step = Step(text, lambda shown: status.update(escape(shown)))
        try:
            with status if spinner else nullcontext():
                yield step
        except BaseException:
            self._line(step.text, begin, ok=False)
            raise
        self._line(step.text, begin, ok=True)

    def _line(self, text: str, begin: float, *, ok: bool) -> None:
        self.console.print(f"{_mark(ok)} {escape(text)} [dim]{time.monotonic() - begin:.1f} s[/]", soft_wrap=True)


def _mark(ok: bool) -> str:
    return "[bold green]✓[/]" if ok else "[bold red]✗[/]"


class Step:
    """A running step; `text` is the final text of its line."""

    def __init__(self, text: str, show: Callable[[str], None]) -> None:
        self.text = text
        self._show = show

    def waiting_for(self, what: str) -> None:
        """Show what the step is waiting for."""
        self._show(f"{self.text}: waiting for {what}")


def table_of(rows: Iterable[Sequence[str | Text]], columns: Sequence[str]) -> Table:
    """A plain table with left-aligned columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def age(seconds: float) -> str:
    """A duration in the two largest units: "2 h 05 min"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
