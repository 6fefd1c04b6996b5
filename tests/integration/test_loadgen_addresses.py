"""The command end to end: addresses as users write them, infinite rates, and the option names of vLLM."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loadgen import StampedServer, command, environment, run, start
from support.waiting import until

from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines

SECRET = "s3cret-word"


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.02, tpot=0.002).running() as server:
        yield server


def everything(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_a_password_in_the_url_is_sent_and_written_nowhere(server: StampedServer, tmp_path: Path) -> None:
    url = server.url.replace("http://", f"http://me:{SECRET}@") + "/v1"
    done = run(url, tmp_path / "run", requests=3)

    assert done.returncode == 0, done.stderr
    assert {one.headers["authorization"] for one in server.served} == {"Basic bWU6czNjcmV0LXdvcmQ="}
    assert {one.path for one in server.served} == {"/v1/completions"}
    assert SECRET not in everything(tmp_path) + done.stdout + done.stderr
    assert read_json(tmp_path / "run" / "manifest.json", Manifest).url == server.url


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    done = run(f"http://me:{SECRET}@127.0.0.1:1", tmp_path / "run", ready_timeout=0)

    assert done.returncode == 2
    assert "http://127.0.0.1:1 is not ready" in done.stderr
    assert SECRET not in done.stderr + everything(tmp_path)


def test_a_password_in_a_sweeps_file_is_on_no_command_line(server: StampedServer, tmp_path: Path) -> None:
    url = server.url.replace("http://", f"http://me:{SECRET}@")
    file = tmp_path / "combos.yaml"
    file.write_text(
        f"base_url: {url}\nmodel: steady\noptions: {{output_tokens: 4, lag_limit_ms: 5000}}\nconcurrency_prompts: [[2, 60]]\n"
    )
    words = [sys.executable, "-m", "pd_loadgen", "sweep", str(file), "--out", str(tmp_path / "out")]
    seen = set()
    with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        while process.poll() is None:
            seen |= {path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
            time.sleep(0.05)

    assert process.returncode == 0
    assert {one.headers["authorization"][:6] for one in server.served} == {"Basic "}
    ours = [line for line in seen if str(tmp_path).encode() in line]
    assert any(b"pd_loadgen\0run" in line for line in ours)
    assert not any(SECRET.encode() in line for line in ours)
    assert SECRET not in everything(tmp_path / "out")


def test_an_infinite_rate_sends_everything_at_once(server: StampedServer, tmp_path: Path) -> None:
    done = run(server.url, tmp_path / "run", rate="inf", requests=40)
    made = read_json(tmp_path / "run" / "manifest.json", Manifest)
    records = list(read_lines(tmp_path / "run" / "requests.jsonl", RequestRecord))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    assert done.returncode == 0, done.stderr
    assert len(server.served) == len(records) == 40
    assert (made.workload.arrival, made.workload.max_concurrency) == ("batch", None)
    assert made.workload.rate == pytest.approx(40 / made.workload.duration_s, rel=1e-4)
    assert summary["request_rate"] == "inf"
    assert summary["max_concurrent_requests"] > 4


def test_a_command_of_vllm_bench_serve_offers_its_load(server: StampedServer, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    words = [
        *(sys.executable, "-m", "pd_loadgen", "run", "--backend", "vllm", "--host", "127.0.0.1", "--port", port),
        *("--model", "steady", "--endpoint", "/v1/completions", "--dataset-name", "random", "--num-prompts", "12"),
        *("--random-input-len", "16", "--random-output-len", "8", "--max-concurrency", "3", "--ignore-eos"),
        *("--percentile-metrics", "ttft,tpot,itl", "--save-result", "--out", str(tmp_path / "run")),
        *("--lag-limit-ms", "5000"),  # the machine may be busy
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, env=environment(), cwd=tmp_path
    )
    load = read_json(tmp_path / "run" / "manifest.json", Manifest).workload

    assert done.returncode == 0, done.stderr
    assert len(server.served) == 12
    assert (load.arrival, load.max_concurrency, load.requests) == ("closed", 3, 12)
    assert {len(one.body["prompt"]) for one in server.served} == {16}


def test_a_command_with_an_option_that_is_not_taken_is_answered(tmp_path: Path) -> None:
    words = [*command("http://127.0.0.1:1", tmp_path / "run"), "--sharegpt-output-len", "5"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, env=environment(), cwd=tmp_path
    )

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "--sharegpt-output-len is an option of vllm bench serve: lengths of answers are those of the file"
        in done.stderr
    )


def test_a_signal_ends_a_run_whose_requests_are_still_being_made(server: StampedServer, tmp_path: Path) -> None:
    process = start(server.url, tmp_path / "run", rate=50_000, duration=30, input_tokens=1000)
    until(lambda: server.connections >= 3, while_=lambda: process.poll() is None)  # ready, models, stats
    time.sleep(0.5)  # far less than 1.5 million prompts take
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "stopped before the first request" in errors
    assert not (tmp_path / "run").exists()
