"""One load from several processes: one schedule, one record set, whatever happens to one of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.control import alive
from support.loadgen import REPOSITORY, StampedServer, environment, run, start
from support.waiting import until

from pd_contracts.free_ports import free_port
from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines

LOCUST = [sys.executable, "-m", "locust", "-f", str(REPOSITORY / "loadgen" / "locustfile.py"), "--headless"]


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.1, tpot=0.01).running() as server:
        yield server


def manifest(folder: Path) -> Manifest:
    return read_json(folder / "manifest.json", Manifest)


def records(folder: Path) -> list[RequestRecord]:
    return list(read_lines(folder / "requests.jsonl", RequestRecord))


def shares(folder: Path) -> set[int]:
    """Which of two processes have records on disk: each has every second request."""
    path = folder / "requests.jsonl"
    return {record.index % 2 for record in records(folder)} if path.exists() else set()


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_until_served(server: StampedServer, count: int) -> None:
    until(lambda: len(server.served) >= count, 30)


def gone(pid: int) -> bool:
    return not alive(pid)


def test_processes_share_one_schedule_and_their_records_are_one_set(server: StampedServer, tmp_path: Path) -> None:
    for count in (1, 3):
        done = run(server.url, tmp_path / str(count), processes=count, warmup=4, rate=30)
        assert done.returncode == 0, done.stderr
    alone, shared = (manifest(tmp_path / str(count)) for count in (1, 3))

    assert shared.complete
    assert shared.schedule_hash == alone.schedule_hash
    made = records(tmp_path / "3")
    measured = [record for record in made if not record.warmup]
    assert sorted(record.index for record in measured) == list(range(shared.workload.requests))
    assert len(made) - len(measured) == shared.workload.warmup_requests == 4
    # all sent what was due, when it was due on one clock
    offsets = [
        [
            record.scheduled - whole.window[0]
            for record in sorted(records(tmp_path / str(count)), key=lambda one: one.index)
            if not record.warmup
        ]
        for count, whole in ((1, alone), (3, shared))
        if whole.window
    ]
    assert offsets[0] == pytest.approx(offsets[1], abs=1e-6)
    assert json.loads((tmp_path / "3" / "summary.json").read_text())["completed"] == len(measured)
    assert shared.client is not None
    assert set(shared.client.dispatch_lag_ms) == set(shared.client.receive_lag_ms) == {"p50", "p90", "p99", "max"}


def test_places_in_flight_are_shared_out(tmp_path: Path) -> None:
    with StampedServer(ttft=0.3, tpot=0.01).running() as server:
        options: dict[str, Any] = {"arrival": "closed", "requests": 9, "max_concurrency": 3, "processes": 2}
        assert run(server.url, tmp_path / "run", **options).returncode == 0

        spans = [(one.received, one.tokens[-1]) for one in server.served]
        assert len(spans) == 9
        assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) <= 3


def test_ctrl_c_keeps_the_records_of_all(server: StampedServer, tmp_path: Path) -> None:
    process = start(server.url, tmp_path / "run", processes=2, duration=60)
    workers = []
    try:
        wait_until_served(server, 6)
        workers = children_of(process.pid)
        for pid in (process.pid, *workers):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert not manifest(tmp_path / "run").complete
    sent = [record for record in records(tmp_path / "run") if record.sent is not None]
    # Every request that the server saw has a record; it may not have read those that were cut off as they were sent.
    assert len([record for record in sent if record.error is None]) <= len(server.served) <= len(sent)
    assert len(workers) == 2
    assert all(map(gone, workers))


def test_a_worker_that_is_killed_ends_the_run_and_is_named_in_it(server: StampedServer, tmp_path: Path) -> None:
    process = start(server.url, tmp_path / "run", processes=2, duration=60)
    try:
        until(lambda: shares(tmp_path / "run") == {0, 1}, 60, "each process has handed over records")
        os.kill(children_of(process.pid)[0], signal.SIGKILL)
        process.communicate(timeout=40)
    finally:
        process.kill()

    made = manifest(tmp_path / "run")
    assert not made.complete
    assert any("worker process was lost" in note for note in made.notes)
    assert shares(tmp_path / "run") == {0, 1}


def test_workers_do_not_outlive_a_killed_master(server: StampedServer, tmp_path: Path) -> None:
    process = start(server.url, tmp_path / "run", processes=2, duration=60)
    try:
        until(lambda: shares(tmp_path / "run"), 60, "records are on disk")
        workers = children_of(process.pid)
    finally:
        process.kill()
        process.communicate()

    until(lambda: all(map(gone, workers)))
    assert len(records(tmp_path / "run")) >= 1
    assert not manifest(tmp_path / "run").complete


def test_a_load_that_a_process_cannot_make_is_one_sentence(server: StampedServer, tmp_path: Path) -> None:
    done = run(server.url, tmp_path / "run", processes=2, rate=0.001, duration=1)

    assert done.returncode == 2
    assert "no request falls into 1 s" in done.stderr
    assert "Traceback" not in done.stderr


def words(url: str, out: Path) -> list[str]:
    load = ["--rate", "20", "--duration", "1", "--seed", "3", "--input-tokens", "16", "--output-tokens", "8"]
    return ["--host", url, "--model", "steady", *load, "--out", str(out), "--lag-limit-ms", "5000"]


def test_locusts_own_processes_share_the_schedule(server: StampedServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [*LOCUST, "--processes", "2", *words(server.url, tmp_path / "run")],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    made = manifest(tmp_path / "run")
    assert made.complete
    assert sorted(record.index for record in records(tmp_path / "run")) == list(range(made.workload.requests))


@contextmanager
def workers(folder: Path, port: str, prefixes: Sequence[Sequence[str]]) -> Iterator[None]:
    """One of Locust's workers for each prefix of its command; all have ended when the block has."""
    started = [
        subprocess.Popen(
            [*prefix, *LOCUST, "--worker", "--master-port", port], cwd=folder, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for prefix in prefixes
    ]  # fmt: skip
    try:
        yield
        for worker in started:
            worker.wait(30)
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def master(url: str, folder: Path, port: str) -> subprocess.CompletedProcess[str]:
    listening = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2"]
    return subprocess.run(
        [*LOCUST, *listening, *words(url, folder / "run")],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_locusts_own_master_and_workers_make_one_run(server: StampedServer, tmp_path: Path) -> None:
    port = str(free_port())
    with workers(tmp_path, port, [[], []]):
        done = master(server.url, tmp_path, port)

    assert done.returncode == 0, done.stderr
    made = manifest(tmp_path / "run")
    assert made.complete
    assert sorted(record.index for record in records(tmp_path / "run")) == list(range(made.workload.requests))
    assert len({json.dumps(one.body["prompt"]) for one in server.served}) == made.workload.requests


def test_records_of_a_worker_with_a_clock_of_its_own_are_on_the_masters(server: StampedServer, tmp_path: Path) -> None:
    elsewhere = ["unshare", "--time", "--monotonic", "5000"]  # as another machine, booted hours before
    if (
        shutil.which("unshare") is None
        or subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("time namespaces need Linux and root")
    port = str(free_port())
    with workers(tmp_path, port, [[], elsewhere]):
        done = master(server.url, tmp_path, port)

    assert done.returncode == 0, done.stderr
    made = manifest(tmp_path / "run")
    assert any("has its own clock" in note for note in made.notes)
    account = {one.output_hash: one for one in server.served}
    kept = records(tmp_path / "run")
    assert len(kept) == made.workload.requests
    for record in kept:  # the server's clock is the master's
        one = account[record.output_hash or ""]
        # the two clocks are 5000 s apart; what lies between sending and receiving depends on the machine
        assert record.sent == pytest.approx(one.received, abs=100)
        assert [at for at, _ in record.chunks] == pytest.approx(one.tokens, abs=100)
    assert made.window == pytest.approx(
        (min(one.scheduled for one in kept), max(one.end or 0 for one in kept)), abs=1e-6
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the table is Linux's")
@pytest.mark.parametrize("load", [{"rate": 300}, {"arrival": "closed", "requests": 300, "max_concurrency": 300}])
def test_the_table_of_open_files_does_not_grow_while_requests_are_due(tmp_path: Path, load: dict[str, object]) -> None:
    """Growing it stops the process until every processor has let go of the old one."""
    sizes = []
    with StampedServer(ttft=4, tpot=0.001).running() as server:
        process = start(server.url, tmp_path / "run", duration=1, **load)
        try:
            for count in (1, 260):
                wait_until_served(server, count)
                sizes.append(table_of_files(process.pid))
            process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == 0
    assert sizes[0] == sizes[1] > 260


def table_of_files(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("FDSize:"))
