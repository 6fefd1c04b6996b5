"""`pd-loadgen sweep` and `aggregate`, with real runs."""

import csv
import io
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loadgen import StampedServer, environment
from support.waiting import until

SWEEP = """
model: steady
base_url: {url}
options: {{duration: 0.3, lag_limit_ms: 5000, output_tokens: 4, idle: 0}}
input_output: [[16, 4], [32, 4]]
concurrency_prompts: [[2, 4]]
"""


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.02, tpot=0.002).running() as server:
        yield server


def words(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pd_loadgen", *map(str, arguments)]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(*arguments), capture_output=True, text=True, timeout=60, check=False, env=environment())


def table(*paths: Path) -> list[dict[str, str]]:
    done = command("aggregate", *paths)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_sweep_makes_a_run_folder_a_point_and_goes_on_where_it_stopped(server: StampedServer, tmp_path: Path) -> None:
    (tmp_path / "combos.yaml").write_text(SWEEP.format(url=server.url))
    out = tmp_path / "out"
    first = command("sweep", tmp_path / "combos.yaml", "--out", out)
    assert first.returncode == 0, first.stderr
    assert len(server.served) == 8
    shutil.rmtree(out / "32x4-concurrency2x4")
    again = command("sweep", tmp_path / "combos.yaml", "--out", out)

    assert again.returncode == 0, again.stderr
    assert "1/2 16x4-concurrency2x4: done before" in again.stderr
    assert len(server.served) == 12
    rows = table(out)
    assert [(row["input_tokens"], row["completed"], row["complete"]) for row in rows] == [
        ("16", "4", "True"),
        ("32", "4", "True"),
    ]
    assert all(float(row["p99_ttft_ms"]) > 20 for row in rows)


def test_a_folder_with_another_run_is_not_taken_for_the_points(server: StampedServer, tmp_path: Path) -> None:
    path = tmp_path / "combos.yaml"
    path.write_text(SWEEP.format(url=server.url))
    assert command("sweep", path, "--out", tmp_path / "out").returncode == 0
    path.write_text(SWEEP.format(url=server.url).replace("output_tokens: 4", "seed: 9"))
    done = command("sweep", path, "--out", tmp_path / "out")

    assert done.returncode == 2
    assert "holds a complete run with other options" in done.stderr


def test_a_sweep_lists_its_runs_and_ends_at_a_server_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "combos.yaml"
    path.write_text(SWEEP.format(url="http://127.0.0.1:9") + "  \n")
    listed = command("sweep", path, "--out", tmp_path / "out", "--dry-run")
    path.write_text(SWEEP.format(url="http://127.0.0.1:9").replace("idle: 0", "ready_timeout: 0"))
    done = command("sweep", path, "--out", tmp_path / "out")

    assert len(listed.stdout.splitlines()) == 2
    assert done.returncode == 2
    assert "2/2" not in done.stderr


def test_a_signal_ends_the_run_under_way_and_the_sweep_and_aggregate_still_reads_it(
    server: StampedServer, tmp_path: Path
) -> None:
    (tmp_path / "combos.yaml").write_text(
        SWEEP.format(url=server.url).replace("concurrency_prompts: [[2, 4]]", "concurrency_prompts: [[2, 4000]]")
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        words("sweep", tmp_path / "combos.yaml", "--out", out), stderr=subprocess.PIPE, env=environment()
    )
    requests = out / "16x4-concurrency2x4000" / "requests.jsonl"
    until(lambda: requests.exists() and requests.stat().st_size, 60, while_=lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert not (out / "32x4-concurrency2x4000").exists()
    (only,) = table(out)
    assert (only["complete"], only["num_prompts"]) == ("False", "4000")
    assert 0 < int(only["completed"]) < 4000


def test_a_killed_run_is_aggregated_from_its_records(server: StampedServer, tmp_path: Path) -> None:
    (tmp_path / "combos.yaml").write_text(SWEEP.format(url=server.url))
    out = tmp_path / "out"
    assert command("sweep", tmp_path / "combos.yaml", "--out", out).returncode == 0
    killed = out / "16x4-concurrency2x4"
    (killed / "summary.json").unlink()
    lines = (killed / "requests.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "requests.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])

    row = next(row for row in table(out) if row["path"] == str(killed))
    assert row["completed"] == "2"


def test_the_table_is_also_written_as_parquet(server: StampedServer, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "combos.yaml").write_text(SWEEP.format(url=server.url))
    out = tmp_path / "out"
    assert command("sweep", tmp_path / "combos.yaml", "--out", out).returncode == 0
    done = command("aggregate", out, "--out", tmp_path / "t" / "runs.csv", "--parquet", tmp_path / "t" / "runs.parquet")

    assert done.returncode == 0, done.stderr
    written = parquet.read_table(tmp_path / "t" / "runs.parquet").to_pylist()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t" / "runs.csv").read_text("utf-8"))))
    assert [row["path"] for row in written] == [row["path"] for row in rows]
    assert [row["input_tokens"] for row in written] == [16, 32]
    assert [row["p99_ttft_ms"] for row in written] == [float(row["p99_ttft_ms"]) for row in rows]


def test_aggregate_says_that_there_is_nothing(tmp_path: Path) -> None:
    done = command("aggregate", tmp_path)

    assert done.returncode == 2
    assert "no run here" in done.stderr
