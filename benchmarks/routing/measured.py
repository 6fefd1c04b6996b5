"""The tables of docs/routing.md on two H200: what was measured, and what the simulation says of the same arrivals.

`python benchmarks/routing/measured.py` offers the arrivals recorded in docs/results/h200x2 to two simulated engines, routed by
the proxy's own code, and writes the rows into both pages; `--check` only says whether they are up to date.

Of the mixed traffic, which had been predicted before it was measured (`mixed.BEFOREHAND`), the brackets hold that prediction;
what the simulation says today is the last column.
"""

# ruff: noqa: INP001  a script

import re
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mixed import BEFOREHAND, MIXED, cells_of
from world import Policy, simulate

from pd_analysis.records.reader import load_runs
from pd_analysis.records.run import Run
from pd_planner.traffic.load import Load
from pd_routing.view import Objectives

DOCS: Final = Path(__file__).parents[2] / "docs"
RECORDS: Final = DOCS / "results/h200x2/records"
DEPLOYMENTS: Final = {
    "2c": ("plain", Policy("plain")),
    "1p1d-p2p": ("1P1D", Policy("static", 1)),
    "2c-adaptive": ("adaptive", Policy("adaptive")),
}
# Each page, and what it calls deployments and loads.
PAGES: Final[dict[Path, dict[str, str]]] = {
    DOCS / "routing.md": {},
    DOCS / "routing.zh.md": {"plain": "普通 vLLM", "adaptive": "自适应", MIXED.name: "对话与文档"},
}
# Loads that had a prediction or were offered to all three deployments; of their folders, the energy is not needed.
SHOWN: Final = re.compile(r"/(512x64-rate30|2048x128-rate8|trace-mixed_\d+|2048x512-rate5)-seed0/(?!gpu)")
MIXED_NAMES: Final = "|".join(names.get(MIXED.name, MIXED.name) for names in PAGES.values())
# The first block of such rows on a page.
ROWS: Final = re.compile(r"(?:^\| [\d,]+ → \d+, \d+ \| .*\n)+", re.MULTILINE)
MIXED_ROWS: Final = re.compile(rf"(?:^\| (?:{MIXED_NAMES}), \d+ \| .*\n)+(?:^\| 2,048 → 512, 5 \| .*\n)?", re.MULTILINE)

# A load, a deployment, and the other cells.
Row = tuple[str, str, str]


def runs(archive: str) -> list[Run]:
    """The runs of an archive that are shown, by the lengths of their prompts, then by their rate."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(RECORDS / f"{archive}.tar.xz") as tar:
        tar.extractall(folder, [each for each in tar.getmembers() if SHOWN.search(each.name)], filter="data")
        found = load_runs([Path(folder)])
    return sorted(found, key=lambda run: (run.manifest.workload.input_tokens or 0, run.manifest.workload.rate))


def measured(run: Run) -> list[str]:
    """The cells of a run."""
    served = run.requests.served
    handed = (served["prefill_instance"] != "") & (served["prefill_instance"] != served["decode_instance"])
    times = (1e3 * served[column].to_numpy() for column in ("ttft", "tpot"))
    found: list[str] = cells_of(*times, float(served["good"].mean()), float(handed.mean()))
    return found


def simulated(run: Run, policy: Policy) -> list[str]:
    """The same cells, simulated with the run's arrivals."""
    goodput, served = run.manifest.workload.goodput, run.requests.served.sort_values("scheduled")
    due, prompt, output = (
        served[each].to_numpy() for each in ("scheduled", "prompt_tokens", "requested_output_tokens")
    )
    load, objectives = Load.of(due - due[0], prompt, output), Objectives(goodput["ttft"], goodput["tpot"])
    result = simulate(2, load, objectives, policy)
    found: list[str] = cells_of(*result.times, float(result.good(objectives).mean()), result.handed_over / len(load))
    return found


def rows() -> Iterator[Row]:
    """Of each load and deployment what was measured, and in brackets what is simulated."""
    found = []
    for archive, (name, policy) in DEPLOYMENTS.items():
        for run in runs(archive):
            cells = _bracketed(measured(run), simulated(run, policy))
            found.append((run.manifest.workload.input_tokens or 0, (_load(run), name, cells)))
    yield from (row for _, row in sorted(found, key=lambda each: each[0]))


def mixed_rows() -> Iterator[Row]:
    """Of each load that had been predicted what was measured, in brackets the prediction, and what is simulated in time today."""
    found = {}
    for archive, (name, policy) in DEPLOYMENTS.items():
        for run in runs(f"{archive}-mixed"):
            trace = re.fullmatch(r"mixed-(\d+)\.csv", run.manifest.workload.options.get("trace", ""))
            load = f"{MIXED.name}, {trace[1]}" if trace else _load(run)
            today, *_ = simulated(run, policy)
            found[load, name] = f"{_bracketed(measured(run), BEFOREHAND[load, name])} | {today}"
    yield from ((*key, found[key]) for key in BEFOREHAND if key in found)


def _load(run: Run) -> str:
    workload = run.manifest.workload
    return f"{workload.input_tokens:,} → {workload.output_tokens}, {workload.rate / 2:g}"


def _bracketed(cells: Iterable[str], others: Iterable[str]) -> str:
    return " | ".join(f"{one} ({other})" for one, other in zip(cells, others, strict=True))


def pages(plain: Iterable[Row], mixed: Iterable[Row]) -> dict[Path, str]:
    """Both pages with these rows."""
    tables = ((ROWS, list(plain)), (MIXED_ROWS, list(mixed)))
    return {page: _page(page.read_text(encoding="utf-8"), names, tables) for page, names in PAGES.items()}


def _page(text: str, names: dict[str, str], tables: Iterable[tuple[re.Pattern[str], list[Row]]]) -> str:
    for pattern, found in tables:
        lines = []
        for load, name, cells in found:
            traffic, rate = load.rsplit(", ", 1)
            lines.append(f"| {names.get(traffic, traffic)}, {rate} | {names.get(name, name)} | {cells} |\n")
        text = pattern.sub("".join(lines), text, count=1)
    return text


def main() -> int:
    written = pages(rows(), mixed_rows())
    if sys.argv[1:] == ["--check"]:
        return int(any(text != page.read_text(encoding="utf-8") for page, text in written.items()))
    for page, text in written.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
