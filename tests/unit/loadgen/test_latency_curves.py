"""Live figures and the client's light, as the web page shows them."""

import pytest

from pd_contracts.records import ClientHealth, Failure, RequestRecord
from pd_loadgen.live.processes import messages
from pd_loadgen.live.processes.messages import Tally
from pd_loadgen.live.ui.latency_curves import MOST_BINS, LatencyCurves
from pd_loadgen.live.ui.traffic_light import light


def request(index: int, at: float, ttft: float = 0.1, tpot: float = 0.02, **changed: object) -> RequestRecord:
    chunks = [(at + ttft + number * tpot, 1) for number in range(5)]
    made = {
        "index": index,
        "id": f"r{index}",
        "scheduled": at,
        "sent": at,
        "chunks": chunks,
        "end": chunks[-1][0],
        "output_tokens": 5,
    }
    return RequestRecord(**{**made, **changed})  # type: ignore[arg-type]


def test_requests_fall_into_the_second_in_which_they_ended() -> None:
    figures = LatencyCurves({"ttft": 150.0})
    for record in (
        request(0, 100.0),
        request(1, 100.5, ttft=0.4),
        request(2, 103.0, error=Failure(kind="status", message="500")),
    ):
        figures.add(record)
    shown = figures.snapshot()

    assert [(one["served"], one["failed"]) for one in shown["bins"]] == [(2, 0), (0, 0), (0, 0), (0, 1)]
    assert shown["totals"]["TPOT"]["p99"] == pytest.approx(20, abs=0.02)
    assert shown["totals"]["TTFT"] == {
        "p50": pytest.approx(250, abs=0.02),
        "p90": pytest.approx(370, abs=0.02),
        "p99": pytest.approx(397, abs=0.02),
    }
    assert shown["bins"][1]["ITL"] == {"p50": None, "p90": None, "p99": None}
    assert (shown["attainment"], shown["goodput"]) == (pytest.approx(1 / 3), pytest.approx(1 / 4))


def test_a_long_run_gets_wider_bins_and_loses_nothing() -> None:
    figures = LatencyCurves({})
    for second in range(3 * MOST_BINS):
        figures.add(request(second, 10.0 + second))
    shown = figures.snapshot()

    assert len(shown["bins"]) <= MOST_BINS
    assert shown["width_s"] == 4
    assert sum(one["served"] for one in shown["bins"]) == shown["served"] == 3 * MOST_BINS
    assert {one["served"] for one in shown["bins"][:-1]} == {4}
    assert (shown["goodput"], shown["attainment"]) == (None, None)


@pytest.mark.parametrize(
    ("tally", "colour"),
    [
        (Tally(), "grey"),
        (Tally(started=100, late=1, reads=100, late_reads=1), "green"),
        (Tally(started=100, late=2, reads=100), "red"),
        (Tally(started=100, reads=100, late_reads=5, chunks=100), "amber"),
        (Tally(started=100, reads=100, late_reads=5, chunks=100, merged=5), "red"),
        (Tally(started=100, looks=100, late_looks=5, chunks=100, kernel=False), "red"),
        (Tally(started=100, reads=100, looks=100, late_looks=5, chunks=100), "green"),
        (Tally(started=100, reads=100, looks=100, late_looks=5, chunks=100, merged=5), "red"),
    ],
)
def test_the_light_says_what_the_verdict_will_be(tally: Tally, colour: str) -> None:
    assert light(tally, 10, None)[0] == colour


@pytest.mark.parametrize(("valid", "colour"), [(True, "green"), (False, "red")])
def test_the_verdict_has_the_last_word(valid: bool, colour: str) -> None:
    client = ClientHealth(
        valid=valid, dispatch_lag_ms={"p99": 1.0}, receive_lag_ms={}, remedy="" if valid else "do this"
    )

    assert light(Tally(started=10, late=10), 10, client)[0] == colour


def test_workers_count_together() -> None:
    both = messages.added([Tally(started=1, late=1, reads=5), Tally(started=2, kernel=False)])

    assert both == Tally(started=3, late=1, reads=5, kernel=False)
