"""benchmarks/gpu on simulated engines: one plan, two topologies out of the same engines, and the calibration of what came out."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stack import ROOT

SCRIPTS = ROOT / "benchmarks/gpu"
PLAN = """
seeds = [1]
phases = [[["pair"], ["plain"]]]

[topologies]
plain = {label = "1 combined", engines = ["combined-0"]}
pair = {label = "disagg 1P1D", engines = ["prefill-0", "decode-0"]}

[[shapes]]
input_tokens = 64
output_tokens = 8
goodput = "ttft:2000 tpot:500"
rates_per_gpu = [4, 8]
seconds = [1, 1]

[[engines]]
role = "combined"
instance = 0
gpu = 2
kv_cache_bytes = 1
[[engines]]
role = "prefill"
instance = 0
gpu = 0
connector = "P2pNcclConnector"
kv_cache_bytes = 1
[[engines]]
role = "decode"
instance = 0
gpu = 1
connector = "P2pNcclConnector"
kv_cache_bytes = 1
"""


def script(*arguments: str | Path, expected: int = 0) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == expected, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Where the run folders lie, and what `run` printed."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "plan.toml").write_text(PLAN)
    options = ("--plan", folder / "plan.toml", "--work", folder / "work", "--out", folder / "out", "--simulated")
    script(SCRIPTS, "start", *options)
    try:
        yield folder, script(SCRIPTS, "run", *options)
        assert "rate-4" not in script(SCRIPTS, "run", *options)  # what is there is not measured again
    finally:
        script(SCRIPTS, "stop", *options)


def test_each_topology_is_served_by_its_own_engines_alone(measured: tuple[Path, str]) -> None:
    folder, printed = measured

    for topology, engines in {"plain": ["combined-0"], "pair": ["prefill-0", "decode-0"]}.items():
        for rate in (4, 8):
            run = folder / f"out/{topology}/64-8/rate-{rate}-seed-1"
            manifest = json.loads((run / "manifest.json").read_text())
            assert manifest["complete"]
            assert [engine["name"] for engine in manifest["deployment"]["engines"]] == engines
            assert json.loads((run / "summary.json").read_text())["failed"] == 0
            assert f"{topology}/64-8/rate-{rate}-seed-1" in printed


def test_without_time_nothing_is_begun(measured: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = measured

    said = script(
        SCRIPTS, "run", "--plan", folder / "plan.toml", "--work", folder / "work", "--out", tmp_path, "--seconds", "1", "--simulated", expected=3
    )  # fmt: skip

    assert "not done: 2 runs of pair" in said
    assert not list(tmp_path.iterdir())


def test_the_calibration_shows_measured_and_simulated_side_by_side(measured: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = measured
    out, report = tmp_path / "profile.json", tmp_path / "calibration.md"

    script(SCRIPTS / "calibrate.py", folder / "out", "--rounds", "0", "--out", out, "--report", report)

    assert json.loads(out.read_text())["board"] == "NVIDIA H200"
    lines = report.read_text().splitlines()
    assert sum(line.startswith("| disagg 1P1D | 64/8 |") for line in lines) == 2
    assert {line.split("|")[5].strip() for line in lines if "| 64/8 |" in line} == {"fitted", "held out"}
