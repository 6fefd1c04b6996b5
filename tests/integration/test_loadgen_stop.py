"""A run that is ended early keeps what it measured."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loadgen import StampedServer, start
from support.waiting import until

from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines
from pd_loadgen.results import aggregate


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.2, tpot=0.02).running() as server:
        yield server


def wait_for_lines(process: subprocess.Popen[str], folder: Path, lines: int) -> None:
    path = folder / "requests.jsonl"
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= lines, while_=lambda: process.poll() is None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_keeps_its_records(
    server: StampedServer, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = start(server.url, out, duration=60, monitor=server.url, idle=0.1)
    wait_for_lines(process, out, 5)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "its numbers are partial" in output
    records = list(read_lines(out / "requests.jsonl", RequestRecord))
    aborted = [record for record in records if record.error and record.error.kind == "aborted"]
    made = read_json(out / "manifest.json", Manifest)
    assert not made.complete
    assert made.window is not None
    sent = [record for record in records if record.sent is not None]
    # Every request that the server saw has a record; it may not have read those that were cut off as they were sent.
    assert len(records) - len(aborted) <= len(server.served) <= len(sent)
    assert 0 < len(aborted) < len(records)
    assert all(record.error is None for record in records if record not in aborted)
    assert server.ended_recordings == 1


def test_a_signal_before_the_window_leaves_no_numbers(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(server.url, out, duration=60, monitor=server.url, idle=60)
    deadline = time.monotonic() + 15
    while not server.recordings:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors.endswith("stopped before the first request\n")
    assert server.ended_recordings == 1
    assert not read_json(out / "manifest.json", Manifest).complete


def test_a_kill_loses_the_last_second_at_most(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(server.url, out, duration=60)
    wait_for_lines(process, out, 20)
    process.kill()
    process.communicate(timeout=60)

    records = list(read_lines(out / "requests.jsonl", RequestRecord))
    made = read_json(out / "manifest.json", Manifest)
    assert not made.complete
    assert made.schedule_hash
    assert len(records) >= 20
    assert all(record.error is None for record in records)
    # half a line at the end is left out, and the table has the rest
    with (out / "requests.jsonl").open("ab") as file:
        file.write(b'{"index": 9')
    assert [row["completed"] for row in aggregate.rows([out])] == [len(records)]
