"""ROUTING and REJECT against plain engines and every XpYd, in virtual time: `make bench-routing`. All numbers are simulated.

Each row is one traffic with its objectives: how many requests per second per engine each way of routing serves so that nine in ten keep both.
What decides is the proxy's own code; what is simulated is the engines, by the profile h200-llama3-8b. Results go to a file, one a
line, and what is there already is not computed again; `--table` writes the page from it.
"""

# ruff: noqa: INP001  a script

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capacity import Setup, best_static, capacity, served
from cases import CASES, NEW, Case
from changing import CHANGING
from steps import stepped
from table import page
from world import Policy

ADAPTIVE = Policy("adaptive")
PARTS = "capacity,local,reject,stress,steps,changing"
WRONG = (0.85, 1.2)
OVERLOAD = (1.1, 1.3, 1.6)
# What the load of engines at work rises to; several loads, because some last for few requests.
STEPS = (1.1, 1.3, 2.0)
STEP_SEEDS = (31, 32, 33)


class Bench:
    """All measurements, each kept in the results as soon as it is there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._file = Path(options.results)
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def run(self) -> None:
        wanted = [case for case in (*CASES, *NEW) if self._options.only in case.label]
        for seed in self._options.seeds:
            for case in wanted:
                self._keep("capacity", case, seed, self._capacity)
            for case in wanted if "local" in self._options.parts else ():
                self._keep("local", case, seed, self._local)
            for case in wanted if "reject" in self._options.parts else ():
                self._keep("reject", case, seed, self._reject)
            for case in wanted if "stress" in self._options.parts else ():
                self._keep("stress", case, seed, self._stress)
            for case in wanted if "steps" in self._options.parts else ():
                self._keep("steps", case, seed, self._steps)
            for case in CHANGING if "changing" in self._options.parts else ():
                if self._options.only in case.label:
                    self._keep("changing", case, seed, self._capacity)

    def _keep(self, kind: str, case: Case, seed: int, measure: Callable[[Case, int], dict[str, Any]]) -> None:
        key = {"kind": kind, "case": case.label, "engines": self._options.engines, "seed": seed}
        if any(all(row.get(name) == value for name, value in key.items()) for row in self.rows):
            return
        longest = {"seconds": self._options.seconds, "requests": self._options.requests}
        row = {**key, **longest, "tuned": case.tuned, **measure(case, seed)}
        self.rows.append(row)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(json.dumps(row, ensure_ascii=False), flush=True)

    def _setup(self, policy: Policy, seed: int, cv: float = 1.0) -> Setup:
        options = self._options
        return Setup(options.engines, policy, seed, options.seconds, options.requests, cv, options.close)

    def _capacity(self, case: Case, seed: int) -> dict[str, Any]:
        plain = capacity(case, self._setup(Policy("plain"), seed), 5.0)
        splits = {p: self._setup(Policy("static", p), seed) for p in range(1, self._options.engines)}
        prefills, static = best_static(case, splits, plain)
        best = max(plain, static)
        setup = self._setup(ADAPTIVE, seed)
        adaptive = capacity(case, setup, best)
        return {
            "plain": plain,
            "static": static,
            "prefills": prefills,
            "adaptive": adaptive,
            "handed_over": served(case, setup, 0.9 * adaptive).handed_over,
        }

    def _local(self, case: Case, seed: int) -> dict[str, Any]:
        return {"local_first": capacity(case, self._setup(Policy("local_first"), seed), self._own(case, seed))}

    def _own(self, case: Case, seed: int) -> float:
        of = [row for row in self.rows if (row["kind"], row["case"], row["seed"]) == ("capacity", case.label, seed)]
        return float(of[-1]["adaptive"])

    def _reject(self, case: Case, seed: int) -> dict[str, Any]:
        own, setup = self._own(case, seed), self._setup(Policy("adaptive", reject=True), seed)
        below = served(case, setup, 0.9 * own).rejected
        return {"rejected_below": below, "kept_1.3": 1.3 * served(case, setup, 1.3 * own).good}

    def _stress(self, case: Case, seed: int) -> dict[str, Any]:
        """Overload with and without early rejection, bursts, and costs that are wrong."""
        own = self._own(case, seed)
        rejecting = self._setup(Policy("adaptive", reject=True), seed)
        row: dict[str, Any] = {"rejected_below": served(case, rejecting, 0.9 * own).rejected}
        for factor in OVERLOAD:
            row[f"kept_{factor}"] = factor * served(case, rejecting, factor * own).good
            row[f"without_{factor}"] = factor * served(case, self._setup(ADAPTIVE, seed), factor * own).good
        bursts = {kind: self._setup(Policy(kind), seed, 2.0) for kind in ("plain", "adaptive")}
        splits = {p: self._setup(Policy("static", p), seed, 2.0) for p in range(1, self._options.engines)}
        plain = capacity(case, bursts["plain"], 0.7 * own)
        row["bursts_best"] = max(plain, best_static(case, splits, plain)[1])
        row["bursts"] = capacity(case, bursts["adaptive"], row["bursts_best"])
        for factor in WRONG:
            row[f"wrong_{factor}"] = capacity(case, self._setup(Policy("adaptive", wrong=factor), seed), own)
        return row

    def _steps(self, case: Case, seed: int) -> dict[str, Any]:
        """Overload of engines that are at work, and what follows."""
        own, row = self._own(case, seed), {}
        for factor in STEPS:
            setups = [self._setup(Policy("adaptive", reject=True), number) for number in STEP_SEEDS]
            found = [stepped(case, setup, own, factor) for setup in setups]
            row[f"kept_{factor}"] = [one.kept for one in found]
            row[f"before_{factor}"] = [one.rejected_before for one in found]
            row[f"after_{factor}"] = [one.rejected_after for one in found]
            row[f"again_{factor}"] = [one.again_s for one in found]
        return row


def main() -> int:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=4, help="engines of a deployment (default 4)")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[21, 22, 23])
    parser.add_argument("--seconds", type=float, default=90.0, help="of virtual time per load (default 90)")
    parser.add_argument("--requests", type=int, default=100_000, help="shorter if it has more (default 100,000)")
    parser.add_argument(
        "--close", type=float, default=1.015, help="how close capacities are looked for (default 1.015)"
    )
    parser.add_argument("--only", default="", help="only cases whose label contains this")
    parser.add_argument("--parts", default=PARTS, help=f"what to measure (default {PARTS})")
    parser.add_argument("--results", default="results/routing.jsonl", help="file of results, which is gone on with")
    parser.add_argument("--table", default="", help="write the page with the tables here")
    options = parser.parse_args()
    Path(options.results).parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    bench.run()
    if options.table:
        Path(options.table).write_text(page(bench.rows, options), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
