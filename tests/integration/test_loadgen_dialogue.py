"""Conversations with a server that records its answers, and profilers around the measured window."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.loadgen import Served, StampedServer, run

from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines

TALK: dict[str, Any] = {"dataset": "text", "endpoint": "chat", "answers": "served", "turns": 3, "think_time": 0.1}


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=0.05, tpot=0.01).running() as server:
        yield server


def records(folder: Path) -> list[RequestRecord]:
    return sorted(read_lines(folder / "requests.jsonl", RequestRecord), key=lambda record: record.index)


def messages(one: Served) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = one.body["messages"]
    return said


@pytest.mark.parametrize("processes", [1, 2])
def test_the_answer_of_a_turn_goes_into_the_next(server: StampedServer, tmp_path: Path, processes: int) -> None:
    done = run(server.url, tmp_path / "run", **TALK, rate=4, duration=1, processes=processes)

    assert done.returncode == 0, done.stderr
    made = read_json(tmp_path / "run" / "manifest.json", Manifest)
    kept = records(tmp_path / "run")
    assert [record.index for record in kept] == list(range(made.workload.requests))
    assert made.workload.requests % 3 == 0
    turns: dict[str, list[Served]] = {}
    for one in sorted(server.served, key=lambda one: one.received):
        turns.setdefault(messages(one)[0]["content"], []).append(one)
    assert len(turns) == made.workload.requests / 3
    for first, second, third in turns.values():
        for before, after in ((first, second), (second, third)):
            answer = "".join(map(before.word, range(len(before.tokens))))
            assert messages(after)[:-2] == messages(before)
            assert messages(after)[-2] == {"role": "assistant", "content": answer}
            # it was thought over before the next question
            assert after.received >= before.tokens[-1] + 0.1
    # a turn is due when its time to think is over: what the client needs for it is in its latency
    for answered, asked in itertools.pairwise(kept):
        if asked.index % 3:
            assert asked.scheduled == pytest.approx((answered.end or 0) + 0.1, abs=1e-6)


def test_turns_after_a_failed_one_have_failed_and_are_not_sent(server: StampedServer, tmp_path: Path) -> None:
    done = run(server.url, tmp_path / "run", **TALK, model="error500", rate=4, duration=1)

    assert done.returncode == 4
    kept = records(tmp_path / "run")
    assert len(server.served) * 3 == len(kept)
    assert [record.error.kind for record in kept[:3] if record.error] == ["status", "aborted", "aborted"]


def test_the_engines_profile_the_window_and_nothing_else(server: StampedServer, tmp_path: Path) -> None:
    done = run(server.url, tmp_path / "run", profile=True, warmup=2, duration=0.5)

    assert done.returncode == 0, done.stderr
    (start, began), (stop, ended) = server.profiles
    assert (start, stop) == ("/start_profile", "/stop_profile")
    kept = records(tmp_path / "run")
    assert max(record.end or 0 for record in kept if record.warmup) < began
    assert began < min(record.sent or 0 for record in kept if not record.warmup)
    assert max(record.end or 0 for record in kept) < ended
    assert any("profiled" in note for note in read_json(tmp_path / "run" / "manifest.json", Manifest).notes)


def test_an_engine_that_cannot_profile_ends_the_run_before_its_window(server: StampedServer, tmp_path: Path) -> None:
    with StampedServer(can_profile=False).running() as other:
        done = run(server.url, tmp_path / "run", profile=True, profile_urls=f"{server.url},{other.url}")

    assert done.returncode == 2
    assert "POST /start_profile answers 404" in done.stderr
    assert [path for path, _ in server.profiles] == ["/start_profile", "/stop_profile"]  # none is left running
    assert server.served == []
