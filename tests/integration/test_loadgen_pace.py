"""Loads that wait: closed loops, limits, batches and phases, against a server that says when it was asked."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.loadgen import Served, StampedServer, run

from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines

pytestmark = pytest.mark.timed

TTFT, TPOT = 0.1, 0.005


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=TTFT, tpot=TPOT).running() as server:
        yield server


def records(folder: Path) -> list[RequestRecord]:
    return sorted(read_lines(folder / "requests.jsonl", RequestRecord), key=lambda record: record.index)


def most_at_once(served: list[Served]) -> int:
    steps = [(one.received, 1) for one in served] + [(one.tokens[-1], -1) for one in served]
    return max(itertools.accumulate(step for _, step in sorted(steps)))


def test_a_closed_loop_keeps_its_number_in_flight(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, arrival="closed", max_concurrency=3, requests=12)

    assert done.returncode == 0, done.stderr
    assert (len(server.served), most_at_once(server.served)) == (12, 3)
    made = read_json(out / "manifest.json", Manifest)
    assert made.workload.max_concurrency == 3
    assert made.window is not None
    assert made.workload.rate == pytest.approx(12 / (made.window[1] - made.window[0]), rel=1e-3)
    # a request of a closed loop is due when its turn has come, so no wait for it is in its latency
    assert all((record.sent or 0) - record.scheduled < 0.05 for record in records(out))


def test_a_limit_on_an_open_loop_is_part_of_the_latency_and_not_of_the_clients_lag(
    server: StampedServer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, arrival="constant", rate=40, duration=0.5, max_concurrency=2)

    assert done.returncode == 0, done.stderr
    assert (len(server.served), most_at_once(server.served)) == (20, 2)
    made = read_json(out / "manifest.json", Manifest)
    assert made.client is not None
    last = records(out)[-1]
    # ten rounds of two take at least ten times TTFT; the last was scheduled half a second after the first
    assert (last.sent or 0) - last.scheduled > 9 * TTFT - 0.5
    assert made.client.dispatch_lag_ms["p50"] < 50


def test_a_batch_waits_for_the_end_of_the_one_before(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, mode="batch", batch_sizes="1,4,2")

    assert done.returncode == 0, done.stderr
    served = sorted(server.served, key=lambda one: one.received)
    batches = [served[:1], served[1:5], served[5:]]
    assert [most_at_once(batch) for batch in batches] == [1, 4, 2]
    assert all(
        max(one.tokens[-1] for one in before) < min(one.received for one in after)
        for before, after in itertools.pairwise(batches)
    )
    assert [len({json.dumps(one.body["prompt"]) for one in batch}) for batch in batches] == [1, 1, 1]
    summary = json.loads((out / "summary.json").read_text())
    assert [batch["size"] for batch in summary["pdstack"]["batches"]] == [1, 4, 2]


def test_phases_are_told_apart_one_request_at_a_time(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(server.url, out, mode="phase-split", requests=2, output_tokens=21)

    assert done.returncode == 0, done.stderr
    assert [one.body["max_tokens"] for one in server.served] == [1, 1, 21, 21]
    assert most_at_once(server.served) == 1
    phases = json.loads((out / "summary.json").read_text())["pdstack"]["phases"]
    assert phases["prefill_ms"] == pytest.approx(TTFT * 1e3, abs=30)
    assert phases["decode_ms"] == pytest.approx(20 * TPOT * 1e3, abs=30)


def test_a_trace_is_replayed_at_its_times(server: StampedServer, tmp_path: Path) -> None:
    rows = [(0, 20, 3), (1000, 30, 2), (1200, 25, 4)]
    trace = tmp_path / "trace.csv"
    lines = [f"{when},x,{asked},{answered},0,y" for when, asked, answered in rows]
    trace.write_text("\n".join(["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", *lines]))
    out = tmp_path / "run"
    done = run(server.url, out, trace=trace, time_scale=0.0005, duration=5)

    assert done.returncode == 0, done.stderr
    assert [(len(one.body["prompt"]), one.body["max_tokens"]) for one in server.served] == [(20, 3), (30, 2), (25, 4)]
    scheduled = [record.scheduled for record in records(out)]
    assert [moment - scheduled[0] for moment in scheduled] == pytest.approx([0, 0.5, 0.6], abs=1e-6)
    load = json.loads((out / "manifest.json").read_text())["workload"]
    assert (load["input_spread"], load["output_spread"]) == ([25, 30], [3, 4])


def test_a_broken_data_set_is_named_with_its_line(server: StampedServer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\nnonsense\n')
    done = run(server.url, tmp_path / "run", dataset="jsonl", dataset_path=path)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"pd-loadgen: {path}:2:")
    assert "Traceback" not in done.stderr
    assert server.served == []


def test_the_key_is_sent_and_written_nowhere(server: StampedServer, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame-4711\n")
    out = tmp_path / "run"
    done = run(server.url, out, duration=0.3, api_key_file=key, headers='{"X-Team": "a b"}')

    assert done.returncode == 0, done.stderr
    assert {one.headers["authorization"] for one in server.served} == {"Bearer sesame-4711"}
    assert {one.headers["x-team"] for one in server.served} == {"a b"}
    written = b"".join(path.read_bytes() for path in out.iterdir())
    assert b"sesame" not in written
    assert "sesame" not in done.stdout + done.stderr
