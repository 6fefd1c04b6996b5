"""Writes docs/reliability.md from runs of the fault matrix (`tests/support/faults.py`); takes some minutes.

What could not be run on a busy machine is run again, alone.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.faults import PAGE, SCENARIOS, page, run_all
from support.rolling import section

TRIES = 4


async def main() -> None:
    rows = []
    for scenario, first in zip(SCENARIOS, await run_all(SCENARIOS), strict=True):
        report = first
        for _ in range(TRIES):
            if not isinstance(report, BaseException) and report.keeps(scenario):
                break
            sys.stderr.write(f"again: {scenario.title}\n")
            [report] = await run_all([scenario])
        if isinstance(report, BaseException):
            raise report
        rows.append(report.row(scenario))
    PAGE.write_text(page(rows, await section()))


if __name__ == "__main__":
    asyncio.run(main())
