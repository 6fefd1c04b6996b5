"""Short chats beside long prompts on two engines: what the simulation expects, and the same arrivals as a trace for GPUs.

    python benchmarks/routing/mixed.py                        rows as in docs/routing.md, with today's rule
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
from pd_planner.traffic.load import Floats, Load
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
# What `rows` said before anything of it was measured, by load and deployment: written on 2026-11-30, and not to be changed.
BEFOREHAND: Final = {
    ("chats and documents, 9", "plain"): ("78.7%", "41.5", "257", "8.38", "15.2", "0%"),
    ("chats and documents, 9", "1P1D"): ("84.1%", "208", "1,058", "6.06", "6.87", "100%"),
    ("chats and documents, 9", "adaptive"): ("97.0%", "104", "496", "6.72", "11.5", "87%"),
    ("chats and documents, 11", "plain"): ("44.1%", "50.2", "304", "10.4", "21.6", "0%"),
    ("chats and documents, 11", "1P1D"): ("43.1%", "625", "2,613", "6.40", "7.79", "100%"),
    ("chats and documents, 11", "adaptive"): ("85.0%", "198", "678", "7.31", "16.4", "84%"),
    ("2,048 → 512, 5", "plain"): ("87.3%", "65.6", "112", "8.96", "11.6", "0%"),
    ("2,048 → 512, 5", "1P1D"): ("65.9%", "99.0", "295", "9.53", "12.4", "100%"),
    ("2,048 → 512, 5", "adaptive"): ("87.3%", "65.6", "112", "8.96", "11.6", "0%"),
    ("2,048 → 512, 5.5", "plain"): ("55.1%", "66.7", "113", "9.84", "12.8", "0%"),
    ("2,048 → 512, 5.5", "1P1D"): ("29.3%", "109", "389", "10.7", "13.7", "100%"),
    ("2,048 → 512, 5.5", "adaptive"): ("55.1%", "66.7", "113", "9.84", "12.8", "0%"),
}
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
            ttft, tpot = (np.concatenate(column) for column in zip(*(one.times for one in found), strict=True))
            handed = sum(one.handed_over for one in found) / len(good)
            cells = [f"{case.name}, {rate:g}", name, *cells_of(ttft, tpot, float(good.mean()), handed)]
            yield f"| {' | '.join(cells)} |"


def cells_of(ttft: Floats, tpot: Floats, good: float, handed: float) -> list[str]:
    """The cells of a row: the share within the objectives, times in ms, and the share that was handed over."""
    times = (number(np.percentile(column, share)) for column in (ttft, tpot) for share in (50, 99))
    return [f"{good:.1%}", *times, f"{handed:.0%}"]


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
