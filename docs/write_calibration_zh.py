"""Writes docs/results/*/calibration.zh.md from the English pages by pd-plan's own catalogue; `--check` only says whether they are up to date."""

import re
import string
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from chinese import UntranslatedError, by_lines, write

from pd_analysis.words.language import in_language, tr

PAGES: Final = tuple(sorted((Path(__file__).parent / "results").glob("*/calibration.md")))
# What pd-plan writes, with its holes: headings, sentences, and the cells that are words.
MESSAGES: Final = (
    "Calibration",
    "{runs} runs with {requests} requests, {model}, {engine}. Every run below was simulated with its own arrivals by a profile that was fitted to the other half of the rates; the profile itself is fitted to all.",
    "Every run, measured | simulated; milliseconds, and joules per output token:",
    "{role} engines: {windows} windows of 16 steps, residual {median} in the median, {most} for nine of ten",
    *("median error, held out", "runs", "capacity", "number", "value", "known to", "deployment", "tokens"),
    *("rate per GPU", "sim."),
)
# What needs no translation: names of deployments and of a profile's numbers, measures, rules, and cells without words.
KEPT: Final = re.compile(
    r"`[^`]+`|(?:\d+ combined|disagg \w+(?: \w+)?)|[a-zA-Z]+[._][\w.]+|n|(?:TTFT|TPOT) p\d+|J/token|[\d.]+e-\d+|[^a-zA-Z]*"
)


def translated(english: str) -> str:
    """The page in Chinese.

    Raises:
        UntranslatedError: if something on it has no translation.
    """
    with in_language("zh"):
        page: str = by_lines(english, _line, _cells)
    return page


def _line(line: str) -> str:
    mark = "# " if line.startswith("# ") else ""
    # One sentence per line, as in every page; the English one is the program's own output.
    return f"{mark}{_said(line.removeprefix(mark))}".replace("。", "。\n").rstrip("\n")


def _cells(row: str) -> Iterator[str]:
    for cell in row.removeprefix("|").removesuffix("|").split("|"):
        text = cell.strip()
        slanted = "*" if re.fullmatch(r"\*.+\*", text) else ""
        yield f"{slanted}{_said(text.strip('*') if slanted else text)}{slanted}"


def _said(text: str) -> str:
    if KEPT.fullmatch(text):
        return text
    for message in MESSAGES:
        if found := _pattern(message).fullmatch(text):
            said: str = tr(message, **found.groupdict())
            return said
    raise UntranslatedError(text)


@cache
def _pattern(message: str) -> re.Pattern[str]:
    """The message as a pattern, each hole a group of its name."""
    parts = string.Formatter().parse(message)
    return re.compile("".join(re.escape(text) + (f"(?P<{hole}>.+)" if hole else "") for text, hole, _, _ in parts))


if __name__ == "__main__":
    sys.exit(max(write(page, translated) for page in PAGES))
