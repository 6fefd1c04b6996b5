"""Pages in Chinese that are written from English ones, line by line: what their writers share."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class UntranslatedError(Exception):
    """A line or cell of the English page that has no translation."""


def by_lines(english: str, line: Callable[[str], str], cells: Callable[[str], Iterable[str]]) -> str:
    """The page in Chinese: rows of tables by `cells`, all other lines by `line`.

    Raises:
        UntranslatedError: if something on it has no translation.
    """
    return "\n".join(
        f"| {' | '.join(cells(each))} |" if each.startswith("|") else line(each) for each in english.split("\n")
    )


def write(english: Path, translate: Callable[[str], str]) -> int:
    """Write the Chinese page beside the English one; with `--check` only compare. Returns the exit status."""
    page, text = english.with_suffix(".zh.md"), translate(english.read_text(encoding="utf-8"))
    if sys.argv[1:] == ["--check"]:
        return 0 if page.read_text(encoding="utf-8") == text else 1
    page.write_text(text, encoding="utf-8")
    return 0
