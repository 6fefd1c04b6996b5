"""Which settings make a load: runs are compared only if all are equal, and rates of one shape form a curve."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.analysis import deployment, group, manifest, request, run, workload

from pd_analysis.conclusions.sweeps import of_sweep
from pd_analysis.conclusions.verdict import verdict
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.comparison import Outcome, compared
from pd_analysis.numbers.evaluation import evaluate, grouped, together
from pd_analysis.numbers.load import Pace, amount_words, load_of, words
from pd_analysis.numbers.measures import DECIDING, TTFT_P50
from pd_analysis.numbers.sweep import sweeps
from pd_analysis.records.run import Run
from pd_analysis.tables.rates import rate_table
from pd_analysis.tables.setup import setup
from pd_contracts.names import Topology
from pd_contracts.records import ClientHealth, Deployment, Workload

DIFFERENCES: list[Any] = [
    pytest.param({"rate": 2.0}, id="rate"),
    pytest.param({"input_tokens": 200}, id="prompt length"),
    pytest.param({"output_tokens": 9}, id="answer length"),
    pytest.param({"dataset": "text"}, id="data"),
    pytest.param({"arrival": "constant"}, id="arrivals"),
    pytest.param({"arrival": "gamma", "burstiness": 0.5}, id="burstiness"),
    pytest.param({"endpoint": "/v1/chat/completions"}, id="endpoint"),
    pytest.param({"max_concurrency": 4}, id="requests in flight at most"),
    pytest.param({"arrival": "closed", "max_concurrency": 4}, id="closed loop"),
    pytest.param({"arrival": "batch"}, id="all at once"),
    pytest.param({"arrival": "batch", "batch_sizes": [1, 2]}, id="mode batch"),
    pytest.param({"arrival": "phase-split"}, id="mode phase-split"),
    pytest.param({"options": {"temperature": "0.7"}}, id="sampling"),
    pytest.param({"options": {"prefix_tokens": "256"}}, id="shared prefix"),
]


def offered(
    topology: Topology, *, name: str = "", ttft: float = 0.1, about: dict[str, Any] | None = None, **load: Any
) -> Run:
    label = name or topology.value
    records = [request(index, index / 20, ttft=ttft) for index in range(100)]
    served = msgspec.structs.replace(deployment(topology, label=label), **(about or {}))
    run_id = f"{label}-{'-'.join(map(str, load.values()))}".replace("/", "_")
    return run(records, manifest(topology, workload=workload(**load), deployment=served, run_id=run_id))


@pytest.mark.parametrize("other", DIFFERENCES)
def test_loads_that_differ_in_anything_are_not_compared(other: dict[str, Any]) -> None:
    groups = grouped(evaluate([offered(Topology.COMBINED), offered(Topology.DISAGG, ttft=0.3, **other)]))

    assert [len(each.results) for each in groups] == [1, 1]


@pytest.mark.parametrize("other", DIFFERENCES)
def test_if_they_are_asked_for_together_no_winner_is_named(other: dict[str, Any]) -> None:
    asked = together(evaluate([offered(Topology.COMBINED), offered(Topology.DISAGG, ttft=0.3, **other)]))

    assert {compared(measure, *asked.results).winner for measure in DECIDING} == {None}
    (pair,) = verdict(asked, doubts(asked)).pairs
    assert pair.lead.startswith("No winner is named")
    assert any("not offered the same load" in doubt.sentence for doubt in doubts(asked))


def test_seeds_durations_and_limits_are_no_part_of_a_load() -> None:
    ours = workload(seed=1, duration_s=10.0, requests=100, goodput={"ttft": 100.0})

    assert load_of(ours) == load_of(workload(seed=2, duration_s=20.0, requests=200, goodput={}))


@pytest.mark.parametrize(
    ("changes", "pace", "amount"),
    [
        ({}, Pace.RATE, 1.0),
        ({"arrival": "replay", "rate": 7.5}, Pace.RATE, 7.5),
        ({"arrival": "closed", "max_concurrency": 32, "rate": 41.48}, Pace.IN_FLIGHT, 32.0),
        ({"arrival": "batch", "rate": 300.0, "requests": 120}, Pace.AT_ONCE, 120.0),
        ({"rate": float("inf"), "requests": 40}, Pace.AT_ONCE, 40.0),
        ({"arrival": "batch", "batch_sizes": [1, 2], "rate": 41.48}, Pace.BATCHES, 0.0),
        ({"arrival": "phase-split", "rate": 1.3}, Pace.PHASES, 0.0),
    ],
)
def test_only_an_open_loop_has_a_rate(changes: dict[str, Any], pace: Pace, amount: float) -> None:
    load = load_of(workload(**changes))

    assert (load.pace, load.amount) == (pace, amount)


# --- curves over requests in flight ------------------------------------------------------------------------------------------


def closed(
    in_flight: int, *, url: str = "http://127.0.0.1:8000", about: dict[str, Any] | None = None, **changes: Any
) -> Run:
    """A closed loop against a server that nobody described: the more in flight, the later the first token."""
    records = [request(index, index / 100, ttft=in_flight / 100) for index in range(100)]
    load: Workload = workload(arrival="closed", max_concurrency=in_flight, rate=in_flight * 3.0, burstiness=None)
    made = manifest(
        workload=load,
        deployment=Deployment(**about or {}),
        run_id=f"256x256-concurrency{in_flight}x10",
        url=url,
        **changes,
    )
    return run(records, made)


def test_a_closed_loop_over_concurrencies_is_one_curve_of_one_deployment() -> None:
    results = evaluate([closed(count) for count in (1, 4, 16)])

    (found,) = sweeps(results)
    (series,) = found.series
    assert series.name == "127.0.0.1:8000"
    assert [(x, round(y, 6)) for x, y in series.points(TTFT_P50.get)] == [(1, 0.01), (4, 0.04), (16, 0.16)]
    assert found.axis.label == "Requests in flight"
    assert not any(each.others for each in grouped(results))
    said = " ".join(of_sweep(found))
    assert "req/s" not in said
    assert "127.0.0.1:8000 at least 16 in flight" in said


def test_with_gpus_the_axis_is_per_gpu() -> None:
    (found,) = sweeps(evaluate([closed(count, about={"gpus": 2, "label": "plain"}) for count in (2, 8)]))

    assert [x for x, _ in found.series[0].points(lambda _: 0.0)] == [1, 4]
    assert found.axis.label == "Requests in flight per GPU"


def test_a_table_of_requests_in_flight_calls_nothing_a_rate() -> None:
    (found,) = sweeps(evaluate([closed(count) for count in (1, 4)]))
    table = rate_table(found.series[0])

    assert [row[0].text for row in table.rows] == ["1 in flight", "4 in flight"]
    assert "over requests in flight" in table.title


def test_two_servers_without_names_are_two_deployments() -> None:
    runs = [closed(count, url=f"http://user:secret@10.0.0.{host}:8000") for host in (1, 2) for count in (1, 4)]
    (found,) = sweeps(evaluate(runs))

    assert [series.name for series in found.series] == ["10.0.0.1:8000", "10.0.0.2:8000"]


def test_two_runs_of_one_load_against_one_address_keep_their_own_names() -> None:
    runs = [closed(4), called(closed(4), "again")]

    assert {result.label for result in evaluate(runs)} == {"256x256-concurrency4x10", "again"}


def called(of: Run, name: str) -> Run:
    return Run(path=Path("results") / name, manifest=of.manifest, requests=of.requests, gpu=None, samples=of.samples)


def test_rates_and_requests_in_flight_are_curves_of_their_own() -> None:
    runs = [closed(count, about={"label": "plain", "gpus": 2}) for count in (1, 4)]
    runs += [offered(Topology.COMBINED, name="plain", rate=rate) for rate in (1.0, 2.0)]

    assert sorted(found.axis.pace.value for found in sweeps(evaluate(runs))) == ["in_flight", "rate"]


# --- equal, unclear ----------------------------------------------------------------------------------------------------------


def few(topology: Topology, *ttfts: float) -> Run:
    records = [request(index, index / 2, ttft=ttft) for index, ttft in enumerate(ttfts)]
    return run(records, manifest(topology, run_id=topology.value))


def test_what_cannot_be_told_is_unclear_and_not_equal() -> None:
    one = few(Topology.COMBINED, *[0.1, 0.9] * 10)
    two = few(Topology.DISAGG, *[0.05, 0.8] * 10)

    found = compared(TTFT_P50, *group(one, two).results)

    assert found.interval is not None
    assert found.interval[0] < 0.7
    assert found.interval[1] > 1.4
    assert found.outcome is Outcome.UNCLEAR
    assert "Still unclear" in verdict(group(one, two), []).pairs[0].lead


@pytest.mark.parametrize(("count", "outcome"), [(2, Outcome.UNCLEAR), (19, Outcome.UNCLEAR), (20, Outcome.BETTER)])
def test_a_handful_of_requests_names_no_winner(count: int, outcome: Outcome) -> None:
    one, two = few(Topology.COMBINED, *[0.4] * count), few(Topology.DISAGG, *[0.1] * count)

    found = compared(TTFT_P50, *group(one, two).results)
    lead = verdict(group(one, two), []).pairs[0].lead

    assert found.outcome is outcome
    assert ("fewer than 20 requests were measured" in lead) is (outcome is Outcome.UNCLEAR)


def test_what_is_surely_alike_is_equal() -> None:
    steady = [0.1 + index % 10 * 1e-4 for index in range(400)]
    found = compared(TTFT_P50, *group(few(Topology.COMBINED, *steady), few(Topology.DISAGG, *steady)).results)

    assert found.outcome is Outcome.EQUAL


def test_the_headline_counts_the_median() -> None:
    # p99 of both is 1 s; the median of disagg is 2.4 times that of combined
    one = few(Topology.COMBINED, *[0.1] * 390, *[1.0] * 10)
    two = few(Topology.DISAGG, *[0.241] * 390, *[1.0] * 10)

    lead = verdict(group(one, two), []).pairs[0].lead

    assert "combined gives an earlier first token (TTFT p50 100 against 241 ms)" in lead
    assert "combined is better in none of the deciding measures" not in lead


def test_a_run_of_a_late_client_names_no_winner() -> None:
    late = ClientHealth(valid=False, dispatch_lag_ms={"p99": 40.0}, receive_lag_ms={}, limit_ms=5.0)
    one = run([request(n, n / 20) for n in range(100)], manifest(client=late))
    two = run([request(n, n / 20, ttft=0.3) for n in range(100)], manifest(Topology.DISAGG))
    pair = group(one, two)

    assert {compared(measure, *pair.results).winner for measure in DECIDING} == {None}
    assert "a run cannot be trusted" in verdict(pair, doubts(pair)).pairs[0].lead


# --- traces ------------------------------------------------------------------------------------------------------------------


REPLAYED: dict[str, Any] = {
    "arrival": "replay",
    "rate": 272 / 30,
    "duration_s": 30.0,
    "requests": 1272,
    "burstiness": None,
    "input_tokens": None,
    "output_tokens": None,
    "options": {"trace": "azure.csv", "time_scale": "0.5"},
}
SPREAD: dict[str, Any] = {"input_spread": [1020, 4100], "output_spread": [129, 500]}


def test_a_trace_is_told_by_its_requests_and_lengths_and_not_as_a_rate_of_any_tokens() -> None:
    assert words(workload(**REPLAYED, **SPREAD)) == (
        "trace azure.csv: 1,272 requests in 30 s, median prompt 1,020 tokens (p95 4,100), median answer 129 tokens "
        "(p95 500) (random data, /v1/completions, time_scale 0.5)"
    )
    assert words(workload(**REPLAYED)) == (
        "trace azure.csv: 1,272 requests in 30 s (random data, /v1/completions, time_scale 0.5)"
    )
    assert amount_words(workload(**REPLAYED)) == "9.07 req/s"


def test_the_set_up_has_the_median_lengths_where_they_vary() -> None:
    rows = {
        row[0].text: row[1].text
        for row in setup(group(run([request(0)], manifest(workload=workload(**REPLAYED, **SPREAD))))).rows
    }

    assert rows["Tokens"] == "median prompt 1,020 tokens (p95 4,100), median answer 129 tokens (p95 500)"


def test_lengths_of_a_file_are_told_beside_the_rate() -> None:
    told = words(workload(dataset="sharegpt", rate=4.0, input_tokens=None, output_tokens=None, **SPREAD))

    assert told == (
        "4 requests/s of any → any tokens (sharegpt data, poisson arrivals, /v1/completions, median prompt 1,020 tokens (p95 4,100), "
        "median answer 129 tokens (p95 500))"
    )
