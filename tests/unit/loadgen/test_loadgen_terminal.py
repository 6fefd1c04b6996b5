"""The terminal: the progress line of a run, and its final table."""

import io
from dataclasses import dataclass

import msgspec
import pytest
from rich.console import Console

from pd_contracts.records import ClientHealth, Clock, Deployment, Failure, Manifest, RequestRecord, Workload
from pd_loadgen.live.terminal import Bar, Lines, closing, status_line
from pd_loadgen.results import manifests
from pd_loadgen.results.summary import summarize


@dataclass
class Standing:
    phase: str = "measuring"
    total: int = 10
    ended: int = 4
    failed: int = 1
    in_flight: int = 2
    left_s: float = 12.4


def manifest(**changes: object) -> Manifest:
    made = Manifest(
        run_id="run-1",
        created="",
        clock=Clock(wall=0.0, monotonic=0.0),
        deployment=Deployment(label="disagg"),
        workload=Workload(
            dataset="random", arrival="poisson", rate=2.0, duration_s=2.0, requests=2, seed=1, goodput={"ttft": 500.0}
        ),
        schedule_hash="abc",
        window=(0.0, 2.0),
        client=ClientHealth(valid=True, dispatch_lag_ms={"p99": 0.5}, receive_lag_ms={"p99": 0.2}),
        complete=True,
    )
    return msgspec.structs.replace(made, **changes)


RECORDS = [
    RequestRecord(
        index=0,
        id="0",
        scheduled=0.0,
        sent=0.0,
        chunks=[(0.25, 1), (0.26, 1)],
        end=0.3,
        prompt_tokens=3,
        output_tokens=2,
    ),
    RequestRecord(index=1, id="1", scheduled=1.0, sent=1.0, end=1.1, error=Failure(kind="timeout", message="x")),
]


def text(made: Manifest, **summary: float) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(closing(made, summarize(made, RECORDS) | summary))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_line_says_what_is_going_on() -> None:
    assert (
        status_line(Standing(), {"TTFT": (123.44, 200), "TPOT": (8.31, 9)})
        == "1 failed, 2 in flight, TTFT p50 123.4 p99 200.0 ms, TPOT p50 8.3 p99 9.0 ms, 12 s left"
    )
    assert status_line(Standing(left_s=0), {}) == "1 failed, 2 in flight, waiting for the last answers"
    assert status_line(Standing(phase="warming up", total=0), {}) == "warming up"


def test_without_a_terminal_there_is_a_line_at_each_phase_and_every_few_seconds() -> None:
    stream = io.StringIO()
    lines = Lines(stream, 0.0)
    for now, phase in [(0.0, "waiting"), (1.0, "waiting"), (2.0, "measuring"), (4.0, "measuring"), (7.5, "measuring")]:
        lines.show(Standing(phase=phase, ended=int(now)), "ok", now)
    lines.close()

    assert stream.getvalue() == "pd-loadgen: 2/10 done, ok\npd-loadgen: 7/10 done, ok\n"


def test_on_a_terminal_the_bar_shows_count_and_line() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    bar = Bar(console)
    bar.show(Standing(), "hello", 0.0)
    bar.close()
    assert isinstance(console.file, io.StringIO)

    assert "4/10" in console.file.getvalue()
    assert "hello" in console.file.getvalue()


def test_the_closing_table_has_latencies_throughput_goodput_and_failures() -> None:
    shown = text(manifest())

    assert "disagg: random, 2 requests/s (poisson), seed 1" in shown
    assert "│ TTFT │ 250.0 │" in shown
    assert "1 of 2 requests served in 2.0 s, 1 failed (1 timeout)" in shown
    assert "goodput 0.50 requests/s within ttft:500 (50.0% of all)" in shown
    assert "client in time" in shown
    assert "SIMULATED" not in shown


def test_large_numbers_have_separators() -> None:
    fast = {"output_throughput": 2321.34, "request_throughput": 1234567.0, "completed": 10000}

    assert "1,234,567.0 requests/s, 2,321.3 output tokens/s" in text(manifest(), **fast)
    assert "10,000 of 2 requests served" in text(manifest(), **fast)


def test_simulated_numbers_say_so() -> None:
    assert text(manifest(deployment=Deployment(simulated=True))).startswith("SIMULATED ")


def test_an_invalid_run_says_why_and_what_to_do() -> None:
    late = ClientHealth(valid=False, dispatch_lag_ms={}, receive_lag_ms={}, remedy="the client was late: do this")

    assert "INVALID: the client was late: do this" in text(manifest(client=late))


def test_a_stopped_run_says_that_it_is_partial() -> None:
    assert "its numbers are partial" in text(manifest(complete=False))


@pytest.mark.parametrize(
    ("made", "served", "status"),
    [
        (manifest(), 1, 0),
        (manifest(), 0, 4),
        (manifest(client=ClientHealth(valid=False, dispatch_lag_ms={}, receive_lag_ms={})), 1, 3),
        (manifest(client=ClientHealth(valid=False, dispatch_lag_ms={}, receive_lag_ms={})), 0, 4),
        (manifest(complete=False), 1, 130),
    ],
)
def test_the_exit_status_tells_how_the_run_went(made: Manifest, served: int, status: int) -> None:
    assert manifests.exit_status(made, served) == status


@pytest.mark.parametrize(
    ("changes", "pace"),
    [
        ({"arrival": "closed", "max_concurrency": 4}, "closed loop, 4 in flight"),
        ({"arrival": "batch"}, "40 requests at once"),
        ({"arrival": "batch", "batch_sizes": [1, 8]}, "batches of 1, 8"),
        ({"arrival": "phase-split"}, "phase-split, 20 prompts"),
        (
            {"arrival": "replay", "duration_s": 22.06, "options": {"trace": "azure.csv"}},
            "trace azure.csv: 40 requests in 22.1 s",
        ),
    ],
)
def test_where_answers_or_a_trace_set_the_pace_no_rate_is_said_to_be_offered(
    changes: dict[str, object], pace: str
) -> None:
    load = msgspec.structs.replace(manifest().workload, requests=40, **changes)

    assert f"disagg: random, {pace}, seed 1" in text(manifest(workload=load))
