"""Writes the tables of docs/planning.md from the published runs (`benchmarks/planner`); takes a minute."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "planner"))

from accuracy import tables  # noqa: E402 - found in the folder that was just named

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- written by docs/write_planning.py -->", "<!-- end -->"


def main() -> None:
    """Replace what stands between the marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([before + BEGIN, "", *tables(), "", END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
