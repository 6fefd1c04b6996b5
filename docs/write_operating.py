"""Writes the table of findings in docs/operating.md from pdctl's catalogue; `--check` only says whether it is up to date."""

import re
import sys
from pathlib import Path

from pd_control.doctor.catalogue import CATALOGUE

PAGE = Path(__file__).with_name("operating.md")
BEGIN, END = "<!-- findings: written by docs/write_operating.py -->", "<!-- end of findings -->"


def table() -> str:
    rows = [f"| `{code}` | {entry.level} | {entry.means} | {entry.remedy} |" for code, entry in CATALOGUE.items()]
    return "\n".join(["| finding | level | meaning | what to do |", "| --- | --- | --- | --- |", *rows])


def page(old: str) -> str:
    """The page with its table as it should be."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", old, flags=re.DOTALL)


def main() -> int:
    old = PAGE.read_text()
    if sys.argv[1:] == ["--check"]:
        return 0 if old == page(old) else 1
    PAGE.write_text(page(old))
    return 0


if __name__ == "__main__":
    sys.exit(main())
