"""Run folders on disk: what is broken or partial is reported with its reason and never counted."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.analysis import constant, manifest, power_log, request, workload, write_run

from pd_analysis.records.reader import load_runs, load_tree
from pd_contracts.names import Role
from pd_contracts.records import GPU, MANIFEST, REQUESTS, Manifest, read_json, write_json


def _run(folder: Path, **changes: Any) -> Path:
    power = power_log({0: (Role.COMBINED, constant(300.0)), 1: (Role.COMBINED, constant(300.0))})
    return write_run(folder, [request(n, n / 10, warmup=n < 2) for n in range(10)], manifest(**changes), power)


def test_runs_are_found_anywhere_in_a_tree_and_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/down/c"):
        _run(tmp_path / name)

    loaded = load_tree([tmp_path, tmp_path / "a", tmp_path / "b" / MANIFEST])

    assert [run.path.name for run in loaded.runs] == ["a", "b", "c"]
    assert loaded.problems == []
    assert len(loaded.runs[0].requests.measured) == 8
    assert len(loaded.runs[0].samples) == 2 * 101


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _without_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _replace(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(
            lambda run: _replace(run / MANIFEST, b'"complete": true', b'"complete": false'),
            "did not finish",
            id="incomplete",
        ),
        pytest.param(
            lambda run: _replace(run / MANIFEST, b'"schema_version": 1', b'"schema_version": 99'),
            "newer than 1",
            id="newer",
        ),
        pytest.param(lambda run: (run / MANIFEST).write_text("{"), MANIFEST, id="manifest broken"),
        pytest.param(lambda run: (run / REQUESTS).unlink(), "there is no such file or folder", id="no requests"),
        pytest.param(lambda run: (run / REQUESTS).write_bytes(b""), "is empty", id="empty"),
        pytest.param(lambda run: _cut(run / REQUESTS), "cut in its last line", id="cut"),
        pytest.param(lambda run: _without_last_line(run / REQUESTS), "holds 9 of 10 requests", id="one missing"),
        pytest.param(
            lambda run: _replace(run / REQUESTS, b'"index":4', b'"index":3'), "request 3 is there twice", id="twice"
        ),
        pytest.param(
            lambda run: _replace(run / REQUESTS, b'"index":4', b'"index":1' + b"0" * 29),
            "index: expected a whole number of at most",
            id="a huge number",
        ),
        pytest.param(
            lambda run: _replace(run / MANIFEST, b'"goodput": {', b'"goodput": {"itl": 5.0,'),
            "workload.goodput has no metric itl",
            id="an unknown limit",
        ),
        pytest.param(
            lambda run: _replace(run / REQUESTS, b'"scheduled":0.3', b'"scheduled":"x"'),
            f"{REQUESTS}:4",
            id="broken line",
        ),
        pytest.param(
            lambda run: _replace(run / REQUESTS, b'"warmup":false', b'"warmup":true'),
            "every request is warm-up",
            id="only warm-up",
        ),
    ],
)
def test_a_broken_run_is_left_out_with_its_reason(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    _run(tmp_path / "whole")
    damage(_run(tmp_path / "broken"))

    loaded = load_tree([tmp_path])

    assert [run.path.name for run in loaded.runs] == ["whole"]
    (problem,) = loaded.problems
    assert problem.path == tmp_path / "broken"
    assert reason in problem.sentence


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut, id="cut"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b'{"no": "header"}\n'), id="no header"),
        pytest.param(lambda path: _replace(path, b'"schema_version":1', b'"schema_version":9'), id="newer"),
    ],
)
def test_broken_power_costs_a_run_its_power_only(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(_run(tmp_path / "run") / GPU)

    loaded = load_tree([tmp_path])

    assert loaded.runs[0].gpu is None
    assert loaded.problems[0].sentence.startswith("kept without its power: ")


def test_a_run_without_power_is_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [request(0)])

    loaded = load_tree([tmp_path])

    assert (len(loaded.runs), loaded.runs[0].gpu, loaded.problems) == (1, None, [])


def test_a_path_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    loaded = load_tree([tmp_path / "nowhere"])

    assert [problem.sentence for problem in loaded.problems] == ["there is no such file or folder"]


def test_fewer_requests_than_the_workload_names_are_a_partial_run(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run")
    about = read_json(folder / MANIFEST, Manifest)
    write_json(folder / MANIFEST, msgspec.structs.replace(about, workload=workload(requests=11)))

    assert "holds 10 of 11 requests" in load_tree([tmp_path]).problems[0].sentence


def test_load_runs_logs_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run(tmp_path / "half", complete=False)

    with caplog.at_level(logging.WARNING):
        assert load_runs([tmp_path]) == []
    assert "did not finish" in caplog.text


def test_a_simulated_board_makes_the_run_simulated(tmp_path: Path) -> None:
    power = power_log({0: (Role.COMBINED, constant(300.0))}, simulated=True)
    write_run(tmp_path / "run", [request(0)], power=power)
    write_run(tmp_path / "true", [request(0)])

    assert [run.simulated for run in load_runs([tmp_path])] == [True, False]
