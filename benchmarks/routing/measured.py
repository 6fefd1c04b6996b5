"""The table of docs/routing.md: what was measured on two H200, and what the simulation says of the same arrivals.

`python benchmarks/routing/measured.py` offers the arrivals recorded in docs/results/h200x2 to two simulated engines, routed by
the proxy's own code, and writes the rows into both pages; `--check` only says whether they are up to date.
"""

# ruff: noqa: INP001  a script

import re
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from world import Policy, simulate

from pd_analysis.records.reader import load_runs
from pd_analysis.records.run import Run
from pd_analysis.words.formatting import number
from pd_planner.traffic.load import Floats, Load
from pd_routing.view import Objectives

DOCS: Final = Path(__file__).parents[2] / "docs"
RECORDS: Final = DOCS / "results/h200x2/records"
POLICIES: Final = {"2c": Policy("plain"), "1p1d-p2p": Policy("static", 1), "2c-adaptive": Policy("adaptive")}
# Each page, and what it calls the deployments.
PAGES: Final = {
    DOCS / "routing.md": {"2c": "plain", "1p1d-p2p": "1P1D", "2c-adaptive": "adaptive"},
    DOCS / "routing.zh.md": {"2c": "普通 vLLM", "1p1d-p2p": "1P1D", "2c-adaptive": "自适应"},
}
# Loads that all three deployments had; of their folders, the energy is not needed.
SHOWN: Final = re.compile(r"/(512x64-rate30|2048x128-rate8)-seed0/(?!gpu)")
ROWS: Final = re.compile(r"(?:^\| [\d,]+ → \d+, \d+ \| .*\n)+", re.MULTILINE)


def runs(archive: str) -> list[Run]:
    """The runs of an archive that are shown."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(RECORDS / f"{archive}.tar.xz") as tar:
        tar.extractall(folder, [each for each in tar.getmembers() if SHOWN.search(each.name)], filter="data")
        return load_runs([Path(folder)])


def rows(archive: str) -> Iterator[tuple[int, str, str]]:
    """Of each load: prompt length, the load, and the cells, each measured and simulated with the same arrivals."""
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
        yield prompt, f"{prompt:,} → {output}, {workload.rate / 2:g}", both


def _cells(ttft: Floats, tpot: Floats, good: float, handed: float) -> list[str]:
    times = (number(np.percentile(column, share)) for column in (ttft, tpot) for share in (50, 99))
    return [f"{good:.1%}", *times, f"{handed:.0%}"]


def pages(rows_of: Iterable[tuple[str, int, str, str]]) -> dict[Path, str]:
    """Both pages with these rows: the archive and what `rows` says of it."""
    found = sorted(rows_of, key=lambda row: row[1])
    return {
        page: ROWS.sub(
            "".join(f"| {load} | {names[archive]} | {cells} |\n" for archive, _, load, cells in found),
            page.read_text(encoding="utf-8"),
            count=1,
        )
        for page, names in PAGES.items()
    }


def main() -> int:
    written = pages([(archive, *row) for archive in POLICIES for row in rows(archive)])
    if sys.argv[1:] == ["--check"]:
        return int(any(text != page.read_text(encoding="utf-8") for page, text in written.items()))
    for page, text in written.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
