"""Every failure is accounted for, and a run that cannot begin gives the reason in one sentence."""

import http.server
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.loadgen import StampedServer, run, start
from support.waiting import until

from pd_contracts.free_ports import free_port
from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines, write_json
from pd_loadgen.target import monitor
from pd_loadgen.target.asking import ServerError


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.02, tpot=0.005).running() as server:
        yield server


def records(folder: Path) -> list[RequestRecord]:
    return list(read_lines(folder / "requests.jsonl", RequestRecord))


def kinds(folder: Path) -> Counter[str]:
    return Counter(record.error.kind if record.error else "" for record in records(folder))


@pytest.mark.parametrize(
    ("model", "kind", "tokens", "message"),
    [
        ("error500", "status", 0, "500: the engine is on fire"),
        ("cut", "truncated", 5, "the server closed the connection in the middle of the answer"),
        ("stream-error", "stream_error", 5, "decode lost the KV"),
        ("silent", "timeout", 0, "no complete answer within 0.5 s"),
    ],
)
def test_a_server_that_always_fails_is_exit_4(
    server: StampedServer, tmp_path: Path, *, model: str, kind: str, tokens: int, message: str
) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, model=model, duration=0.5, timeout=0.5 if kind == "timeout" else 60)

    assert done.returncode == 4, done.stderr
    assert kinds(out) == {kind: len(server.of(model))}
    assert {record.error.message for record in records(out) if record.error} == {message}
    assert {len(record.chunks) for record in records(out)} == {tokens}  # what came before the failure is kept
    assert read_json(out / "manifest.json", Manifest).complete


def test_some_failures_among_successes_are_counted_apart(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, model="flaky", duration=1)

    assert done.returncode == 0
    oracle = {"": "steady", "status": "error500", "truncated": "cut"}
    assert kinds(out) == {kind: len(server.of(behaviour)) for kind, behaviour in oracle.items()}


def test_a_complete_run_is_kept_and_an_incomplete_one_repeated(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = run(server.url, out, duration=0.3, rerun_incomplete=True)
    assert whole.returncode == 0, whole.stderr
    before = (out / "requests.jsonl").read_bytes()

    again = run(server.url, out, duration=0.3, rerun_incomplete=True)
    assert (again.returncode, again.stdout) == (0, "")
    assert f"{out} holds a complete run, which is kept: nothing was sent" in again.stderr
    assert (out / "requests.jsonl").read_bytes() == before

    manifest = out / "manifest.json"
    write_json(manifest, msgspec.structs.replace(read_json(manifest, Manifest), complete=False))
    assert run(server.url, out, duration=0.3, rerun_incomplete=True).returncode == 0
    assert (out / "requests.jsonl").read_bytes() != before
    assert read_json(manifest, Manifest).complete


def test_without_usage_the_tokens_are_unknown(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, model="no-usage", duration=0.3)

    assert done.returncode == 0
    assert {(record.prompt_tokens, record.output_tokens) for record in records(out)} == {(None, None)}
    assert "– output tokens/s" in done.stdout


def test_a_server_that_dies_in_the_middle_is_accounted_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with StampedServer(ttft=0.3, tpot=0.01).running() as server:
        process = start(server.url, out, duration=3, arrival="constant")
        until(lambda: len(server.served) >= 10)
    process.communicate(timeout=60)

    assert process.returncode == 0
    made = read_json(out / "manifest.json", Manifest)
    counted = kinds(out)
    assert made.complete
    assert sum(counted.values()) == made.workload.requests == 60
    assert set(counted) <= {"", "connect", "truncated"}
    assert min(counted["connect"], counted["truncated"]) > 0
    assert all(record.sent is None for record in records(out) if record.error and record.error.kind == "connect")


def test_an_unreachable_server_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = run(url, tmp_path / "run", ready_timeout=0.3)

    assert done.returncode == 2
    assert done.stderr == f"pd-loadgen: {url} is not ready after 0.3 s: Connection refused\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "named", [{"arrival": "replay", "trace": "no.csv"}, {"dataset": "jsonl", "dataset_path": "no.csv"}]
)
def test_a_file_that_is_not_there_is_named_before_the_server_is_waited_for(
    tmp_path: Path, named: dict[str, Any]
) -> None:
    done = run(f"http://127.0.0.1:{free_port()}", tmp_path / "run", ready_timeout=600, **named)

    assert done.returncode == 2
    assert done.stderr == "pd-loadgen: no.csv: there is no such file or folder\n"


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    process = start(f"http://127.0.0.1:{port}", tmp_path / "run", duration=0.3, ready_timeout=30)
    time.sleep(1.5)  # it asks in vain meanwhile
    with StampedServer(wanted_port=port).running():
        process.communicate(timeout=60)

    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "absent"}, "does not serve 'absent', but steady"),
        ({"rate": "fast"}, "--rate='fast'"),
        ({"rate": 0.001}, "no request falls into 1 s"),
        ({"endpoint": "chat"}, "use dataset text"),
        ({"monitor": "http://127.0.0.1:1"}, "the monitor at http://127.0.0.1:1 cannot be used"),
    ],
)
def test_what_cannot_begin_is_one_sentence_and_exit_2(
    server: StampedServer, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    done = run(server.url, tmp_path / "run", idle=0, **options)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert server.served == []


def test_a_folder_that_cannot_be_written_is_one_sentence_and_exit_2(server: StampedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(server.url, tmp_path / "file" / "run", cwd=tmp_path)

    assert done.returncode == 2
    assert "file is a file: choose another --out, a folder" in done.stderr


def test_a_run_is_not_overwritten_unasked(server: StampedServer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "requests.jsonl").write_bytes(b"{}\n")

    done = run(server.url, tmp_path / "run", duration=0.3)

    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert (tmp_path / "run" / "requests.jsonl").read_bytes() == b"{}\n"
    assert server.served == []


def test_a_monitor_that_starts_later_is_waited_for() -> None:
    """In a cluster everything is started at once, and the load must not end because the monitor is the last."""
    port = free_port()
    slept: list[float] = []
    servers: list[http.server.HTTPServer] = []

    class Late(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'[{"uuid": "GPU-1", "index": 3}]')

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            servers.append(http.server.HTTPServer(("127.0.0.1", port), Late))
            threading.Thread(target=servers[0].serve_forever, daemon=True).start()

    try:
        assert monitor.wait_for_boards(f"http://127.0.0.1:{port}", 30, sleep) == {"GPU-1": 3}
        assert len(slept) == 2
    finally:
        for late in servers:
            late.shutdown()
            late.server_close()


def test_a_monitor_that_has_no_gpu_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{}, {}, {"GPU-1": 3}])
    monkeypatch.setattr(monitor, "boards", lambda _: next(answers))

    assert monitor.wait_for_boards("", 30, lambda _: None) == {"GPU-1": 3}


def test_a_monitor_without_any_gpu_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 15.0])
    monkeypatch.setattr(monitor, "boards", lambda _: {})

    assert monitor.wait_for_boards("", 600, lambda _: None, lambda: next(times)) == {}


def test_a_monitor_that_never_starts_is_a_sentence_in_the_end() -> None:
    times = iter([0.0, 1.0, 11.0])
    with pytest.raises(ServerError, match="cannot be used"):
        monitor.wait_for_boards("http://127.0.0.1:1", 10, lambda _: None, lambda: next(times))
