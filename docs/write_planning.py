"""Writes the tables of docs/planning.md from the condensed runs of `benchmarks/planner`; `--check` only says whether they are up to date."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "planner"))

from accuracy import tables  # noqa: E402 - found in the folder that was just named

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- written by docs/write_planning.py -->", "<!-- end -->"


def page(written: str) -> str:
    """The page with what stands between the marks made anew."""
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *tables(), "", END + after])


def main() -> int:
    written = PAGE.read_text(encoding="utf-8")
    made = page(written)
    if sys.argv[1:] == ["--check"]:
        return 0 if made == written else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
