"""Writes docs/reliability.md from runs of the fault matrix (`tests/support/faults.py`); takes a minute or two."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.faults import PAGE, SCENARIOS, page, run
from support.rolling import section


async def main() -> None:
    """Run every scenario, one after the other."""
    rows = []
    for scenario in SCENARIOS:
        rows.append((await run(scenario)).row(scenario))
        sys.stderr.write(rows[-1] + "\n")
    PAGE.write_text(page(rows, await section()))


if __name__ == "__main__":
    asyncio.run(main())
