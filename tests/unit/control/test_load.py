"""The same load for every topology, or no comparison."""

from pathlib import Path

import pytest

from pd_contracts.records import MANIFEST, Clock, Deployment, Manifest, Workload, write_json
from pd_control.demo.load import Load, LoadError, Target, command, refuse_unequal

LOAD = Load(rate=10, duration_s=2.5, input_tokens=64, output_tokens=8, seed=3, goodput="ttft:200 tpot:50")


def target(number: int, monitor: str = "") -> Target:
    return Target(
        url=f"http://127.0.0.1:{number}",
        model="m",
        label=f"label {number}",
        deployment=Path(f"d{number}"),
        monitor=monitor,
    )


def manifest(folder: Path, schedule_hash: str) -> Path:
    record = Manifest(
        run_id="r",
        created="2026-01-01T00:00:00Z",
        clock=Clock.now(),
        deployment=Deployment(),
        workload=Workload(dataset="random", arrival="poisson", rate=1, duration_s=1, requests=1, seed=0),
        schedule_hash=schedule_hash,
    )
    write_json(folder / MANIFEST, record)
    return folder


def test_only_the_target_differs_between_topologies() -> None:
    one = command(LOAD, target(1), Path("out/disagg"))
    two = command(LOAD, target(2), Path("out/combined"))

    differing = {option for option, a, b in zip(one, one[1:], two[1:], strict=False) if a != b}
    assert differing == {"--url", "--label", "--deployment", "--out"}


def test_without_a_monitor_none_is_named() -> None:
    assert "--monitor" not in command(LOAD, target(1), Path("out"))
    assert "--monitor" in command(LOAD, target(1, "http://127.0.0.1:9835"), Path("out"))


def test_runs_with_one_schedule_are_compared(tmp_path: Path) -> None:
    folders = [manifest(tmp_path / name, "abc") for name in ("disagg", "combined")]

    assert refuse_unequal(folders) == "abc"


def test_runs_with_different_schedules_are_refused(tmp_path: Path) -> None:
    folders = [manifest(tmp_path / "disagg", "abc"), manifest(tmp_path / "combined", "abd")]

    with pytest.raises(LoadError, match="disagg abc, combined abd"):
        refuse_unequal(folders)
