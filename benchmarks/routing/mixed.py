"""Short chats beside long prompts on two engines: what the simulation expects, and the same arrivals as a trace for GPUs.

    python benchmarks/routing/mixed.py                        the rows of docs/routing.md
    python benchmarks/routing/mixed.py --trace 9 >mixed-9.csv   9 requests per second per GPU, for `pdctl compare --trace mixed-9.csv`

Four requests in five are chats, 512 -> 256 tokens; one is a document, 6,000 -> 64. The rows have 2,048 -> 512 tokens beside them.
"""

# ruff: noqa: INP001, T201  a script that prints

import argparse
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

import numpy as np
from cases import Case, alike
from world import Policy, simulate

from pd_analysis.words.formatting import number
from pd_planner.traffic.load import Load
from pd_routing.view import Objectives

OBJECTIVES: Final = Objectives(500, 10)
MIXED: Final = Case(
    "chats and documents", OBJECTIVES.ttft, OBJECTIVES.tpot, (*[alike(512, 256)] * 4, alike(6000, 64)), tuned=False
)
LONG: Final = Case("2,048 → 512", OBJECTIVES.ttft, OBJECTIVES.tpot, (alike(2048, 512),))
ROWS: Final = ((MIXED, 9.0), (MIXED, 11.0), (LONG, 5.0), (LONG, 5.5))
POLICIES: Final = {"plain": Policy("plain"), "1P1D": Policy("static", 1), "adaptive": Policy("adaptive")}
ENGINES: Final = 2
SECONDS: Final = 60.0
# Any moment: only differences count in a trace.
BEGIN: Final = datetime(2026, 1, 1)  # noqa: DTZ001  traces have no zone


def load_of(case: Case, rate: float, seed: int) -> Load:
    """So many requests per second and engine."""
    load: Load = case.load(ENGINES * rate, SECONDS, seed)
    return load


def rows(seeds: range) -> Iterator[str]:
    """A line of a table for each load and deployment, over all seeds."""
    for case, rate in ROWS:
        for name, policy in POLICIES.items():
            found = [simulate(ENGINES, load_of(case, rate, seed), OBJECTIVES, policy) for seed in seeds]
            good = np.concatenate([one.good(OBJECTIVES) for one in found])
            ttft = np.concatenate([(one.first - one.load.at) * 1e3 for one in found])
            tpot = np.concatenate([(one.last - one.first) * 1e3 / (one.load.output - 1) for one in found])
            handed = sum(one.handed_over for one in found) / len(good)
            times = [number(np.percentile(column, share)) for column in (ttft, tpot) for share in (50, 99)]
            cells = [f"{case.name}, {rate:g}", name, f"{good.mean():.1%}", *times, f"{handed:.0%}"]
            yield f"| {' | '.join(cells)} |"


def trace(rate: float) -> Iterator[str]:
    """The lines of a trace of Azure's form, of the first seed."""
    load = load_of(MIXED, rate, 0)
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for at, prompt, answer in zip(load.at, load.prompt, load.output, strict=True):
        yield f"{BEGIN + timedelta(seconds=float(at))},{prompt},{answer}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=float, metavar="RATE", help="requests per second per GPU")
    parser.add_argument("--seeds", type=int, default=3, help="of the rows: 0 to one less than this")
    options = parser.parse_args()
    for line in rows(range(options.seeds)) if options.trace is None else trace(options.trace):
        print(line)


if __name__ == "__main__":
    main()
