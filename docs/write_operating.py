"""Writes the table of findings in docs/operating.md and its Chinese page from pdctl's catalogue; `--check` only says whether they are up to date."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from findings_zh import SENTENCES

from pd_control.doctor.catalogue import CATALOGUE

PAGE: Final = Path(__file__).with_name("operating.md")
CHINESE_PAGE: Final = PAGE.with_suffix(".zh.md")
BEGIN, END = "<!-- findings: written by docs/write_operating.py -->", "<!-- end of findings -->"
HEADS: Final = {PAGE: "| finding | level | meaning | what to do |", CHINESE_PAGE: "| 代码 | 级别 | 含义 | 怎么办 |"}
LEVELS: Final = {"error": "错误", "warning": "警告"}


def english(sentence: str) -> str:
    return sentence


def chinese(sentence: str) -> str:
    """A level or a sentence of the catalogue in Chinese.

    Raises:
        KeyError: if it has none.
    """
    return LEVELS[sentence] if sentence in LEVELS else SENTENCES[sentence]


WORDS: Final[dict[Path, Callable[[str], str]]] = {PAGE: english, CHINESE_PAGE: chinese}


def table(page: Path) -> str:
    say = WORDS[page]
    rows = [
        f"| `{code}` | {say(entry.level)} | {say(entry.means)} | {say(entry.remedy)} |"
        for code, entry in CATALOGUE.items()
    ]
    return "\n".join([HEADS[page], "| --- | --- | --- | --- |", *rows])


def written(page: Path) -> str:
    """The page with its table as it should be."""
    old = page.read_text(encoding="utf-8")
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table(page)}\n{END}", old, flags=re.DOTALL)


def main() -> int:
    pages = {page: written(page) for page in WORDS}
    if sys.argv[1:] == ["--check"]:
        return 0 if all(page.read_text(encoding="utf-8") == text for page, text in pages.items()) else 1
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
