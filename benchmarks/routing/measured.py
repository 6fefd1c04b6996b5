"""What the simulation says of the loads of docs/results/h200x2, and what was measured: the table of docs/routing.md.

`python benchmarks/routing/measured.py` offers the recorded arrivals to two simulated engines, routed by the proxy's own code.
"""

# ruff: noqa: INP001  a script

import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from world import Policy, simulate

from pd_analysis.records.reader import load_runs
from pd_analysis.records.run import Run
from pd_analysis.words.formatting import number
from pd_planner.traffic.load import Floats, Load
from pd_proxy.routing.view import Objectives

RECORDS: Final = Path(__file__).parents[2] / "docs/results/h200x2/records"
POLICIES: Final = {"2c": Policy("plain"), "1p1d-p2p": Policy("static", 1), "2c-adaptive": Policy("adaptive")}
NAMES: Final = {"2c": "plain", "1p1d-p2p": "1P1D", "2c-adaptive": "adaptive"}
# Loads that all three deployments had.
LOADS: Final = {(512, 60.0), (2048, 16.0)}


def runs(archive: str) -> list[Run]:
    """The runs of an archive that are shown."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(RECORDS / f"{archive}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
        found = load_runs([Path(folder)])
    return [run for run in found if (run.manifest.workload.input_tokens, run.manifest.workload.rate) in LOADS]


def rows(archive: str) -> Iterator[str]:
    """Of each load: measured, and simulated with the same arrivals."""
    for run in sorted(runs(archive), key=lambda run: run.manifest.workload.input_tokens or 0):
        workload, served = run.manifest.workload, run.requests.served
        due = np.sort(served["scheduled"].to_numpy())
        prompt, output = workload.input_tokens or 0, workload.output_tokens or 0
        load = Load.of(due - due[0], prompt, output)
        objectives = Objectives(workload.goodput["ttft"], workload.goodput["tpot"])
        result = simulate(2, load, objectives, POLICIES[archive])
        ttft = (result.first - load.at) * 1e3
        tpot = (result.last - result.first) * 1e3 / (load.output - 1)
        handed = (served["prefill_instance"] != "") & (served["prefill_instance"] != served["decode_instance"])
        measured = _cells(
            1e3 * served["ttft"].to_numpy(),
            1e3 * served["tpot"].to_numpy(),
            float(served["good"].mean()),
            handed.mean(),
        )
        simulated = _cells(ttft, tpot, float(result.good(objectives).mean()), result.handed_over / len(load))
        both = " | ".join(f"{one} ({other})" for one, other in zip(measured, simulated, strict=True))
        yield f"| {prompt:,} → {output}, {workload.rate / 2:g} | {NAMES[archive]} | {both} |"


def _cells(ttft: Floats, tpot: Floats, good: float, handed: float) -> list[str]:
    times = (number(np.percentile(column, share)) for column in (ttft, tpot) for share in (50, 99))
    return [f"{good:.1%}", *times, f"{handed:.0%}"]


def main() -> None:
    found = [row for archive in POLICIES for row in rows(archive)]
    head = "| tokens, requests/s per GPU | | within the limits | TTFT p50, ms | TTFT p99, ms | TPOT p50, ms | TPOT p99, ms | handed over |"
    lines = [head, "| --- | --- |" + " ---: |" * 6, *sorted(found, key=lambda row: row.startswith("| 2"))]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
