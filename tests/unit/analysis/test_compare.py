"""Which runs are compared, which wins, and the wording of the verdict."""

import msgspec
import pytest
from support.analysis import constant, deployment, group, manifest, power_log, request, run, workload

from pd_analysis.conclusions.verdict import sentence, verdict
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.comparison import Outcome, compared
from pd_analysis.numbers.evaluation import Group, evaluate, grouped
from pd_analysis.numbers.measures import GAP_P99, GOODPUT, JOULES, TPOT_P99, TTFT_P99, Measure
from pd_analysis.records.run import Run
from pd_analysis.tables.comparison import comparison
from pd_analysis.tables.performance import rates
from pd_contracts.names import Role, Topology


def served(
    topology: Topology,
    *,
    ttft: float = 0.1,
    gap: float = 0.01,
    watts: float | None = None,
    rate: float = 1.0,
    name: str = "",
    **changes: object,
) -> Run:
    about = manifest(topology, workload=workload(rate=rate), run_id=name or topology.value, **changes)
    roles = (Role.PREFILL, Role.DECODE) if topology is Topology.DISAGG else (Role.COMBINED, Role.COMBINED)
    boards = {index: (role, constant(watts / 2)) for index, role in enumerate(roles)} if watts else {}
    power = power_log(boards) if boards else None
    return run([request(index, index / 20, ttft=ttft, gaps=[gap, gap]) for index in range(100)], about, power)


def _cell(run_group: Group, title: str, column: int) -> str:
    table = comparison(run_group)
    (row,) = [row for row in table.rows if row[0].text == title]
    return row[column].text


@pytest.mark.parametrize(
    ("theirs", "winner"),
    [
        pytest.param(0.0899, "disagg", id="more than a tenth lower"),
        pytest.param(0.0921, None, id="within a tenth"),
        pytest.param(0.1099, None, id="within a tenth, higher"),
        pytest.param(0.1121, "combined", id="more than a tenth higher"),
    ],
)
def test_a_difference_of_p99_needs_more_than_ten_percent(theirs: float, winner: str | None) -> None:
    pair = group(served(Topology.COMBINED, ttft=0.1), served(Topology.DISAGG, ttft=theirs))

    found = compared(TTFT_P99, *pair.results)

    assert (found.winner.name if found.winner else None) == winner
    assert found.outcome is {"disagg": Outcome.BETTER, "combined": Outcome.WORSE, None: Outcome.EQUAL}[winner]
    assert found.ratio == pytest.approx(theirs / 0.1)


def test_more_goodput_is_better_even_against_none() -> None:
    # TPOT of 60 ms misses the limit of 50 ms for every request
    pair = group(served(Topology.COMBINED, gap=0.06), served(Topology.DISAGG))

    found = compared(GOODPUT, *pair.results)

    assert found.winner is pair.results[1]
    assert found.ratio is None
    assert "disagg is better." in sentence(found)


def test_unknown_on_one_side_is_no_comparison() -> None:
    pair = group(served(Topology.COMBINED, watts=300.0), served(Topology.DISAGG))

    found = compared(JOULES, *pair.results)

    assert (found.known, found.winner, found.outcome, found.ratio) == (False, None, Outcome.UNKNOWN, None)
    assert _cell(pair, "Energy per output token", 3) == "–"


def test_the_verdict_names_what_each_side_gives_and_by_what_factor() -> None:
    pair = group(
        served(Topology.COMBINED, ttft=0.1, gap=0.02, watts=300.0),
        served(Topology.DISAGG, ttft=0.15, gap=0.01, watts=303.0),
    )

    said = verdict(pair, doubts(pair))

    assert said.pairs[0].lead == (
        "The choice depends on your goal: disagg gives faster tokens (TPOT p50 10.0 against 20.0 ms, TPOT p99 10.0 against 20.0 ms) "
        "and shorter stalls (longest gap p99 10.0 against 20.0 ms); combined gives an earlier first token (TTFT p50 100 against 150 ms, "
        "TTFT p99 100 against 150 ms). Equal: goodput per GPU, energy per output token."
    )
    assert [sentence(found) for found in said.pairs[0].comparisons][-1].endswith("; equal.")


def test_the_verdict_says_when_nothing_speaks_for_one_side() -> None:
    pair = group(served(Topology.COMBINED), served(Topology.DISAGG, ttft=0.05))

    lead = verdict(pair, []).pairs[0].lead

    assert lead == (
        "disagg gives an earlier first token (TTFT p50 50.0 against 100 ms, TTFT p99 50.0 against 100 ms); combined is better in "
        "none of the deciding measures. Equal: TPOT p50, TPOT p99, longest gap p99, goodput per GPU."
    )


def test_the_verdict_names_no_winner_between_equals() -> None:
    pair = group(served(Topology.COMBINED), served(Topology.DISAGG))

    said = verdict(pair, [])

    assert said.pairs[0].lead.startswith(
        "Neither combined nor disagg is better in any deciding measure. Equal: TTFT p50"
    )
    assert said.pairs[0].unknown == ("Energy per output token",)


def test_a_heavy_doubt_stands_beside_the_verdict() -> None:
    pair = group(served(Topology.COMBINED), served(Topology.DISAGG, schedule_hash="b" * 16))

    assert verdict(pair, doubts(pair)).caveat.endswith("do not base a decision on them.")
    assert verdict(pair, []).caveat == ""


def test_one_run_has_nothing_to_be_compared_with() -> None:
    said = verdict(group(served(Topology.DISAGG)), [])

    assert said.pairs == ()
    assert "nothing to compare" in said.setting


def test_plain_serving_is_the_baseline_whatever_the_order() -> None:
    pair = group(served(Topology.DISAGG), served(Topology.COMBINED))

    assert [result.name for result in pair.results] == ["combined", "disagg"]


def test_runs_are_grouped_by_workload() -> None:
    runs = [served(topology, rate=rate) for rate in (5.0, 2.0) for topology in (Topology.DISAGG, Topology.COMBINED)]

    groups = grouped(evaluate(runs))

    assert [(each.workload.split(" (")[0], [result.name for result in each.results]) for each in groups] == [
        ("2 requests/s of 100 → 3 tokens", ["combined", "disagg"]),
        ("5 requests/s of 100 → 3 tokens", ["combined", "disagg"]),
    ]


def test_runs_that_share_no_rate_are_not_compared() -> None:
    groups = grouped(evaluate([served(Topology.DISAGG, rate=60.0), served(Topology.COMBINED, rate=30.0)]))

    assert [[result.name for result in each.results] for each in groups] == [["combined"], ["disagg"]]


def test_namesakes_are_told_apart() -> None:
    by_rate = group(served(Topology.DISAGG, rate=1.0), served(Topology.DISAGG, rate=2.0))
    by_folder = group(served(Topology.DISAGG, name="first"), served(Topology.DISAGG, name="second"))

    assert [result.name for result in by_rate.results] == ["disagg (1 req/s)", "disagg (2 req/s)"]
    assert [result.name for result in by_folder.results] == ["disagg (first)", "disagg (second)"]


def test_rates_are_given_in_total_and_per_gpu() -> None:
    # 100 requests of 3 tokens in 10 s, on 4 GPUs
    table = rates(group(served(Topology.COMBINED, deployment=deployment(gpus=4))))

    assert [cell.text for cell in table.rows[1]] == ["Output tokens", "tok/s", "30.0", "7.50"]


@pytest.mark.parametrize(("measure", "text"), [(TTFT_P99, "100"), (TPOT_P99, "10.0"), (GAP_P99, "10.0")])
def test_latencies_are_shown_in_milliseconds(measure: Measure, text: str) -> None:
    assert measure.text(group(served(Topology.COMBINED)).baseline) == text


def test_a_run_of_unknown_topology_is_called_by_its_folder() -> None:
    unnamed = msgspec.structs.replace(deployment(label=""), topology=None)

    (result,) = evaluate([run([request(0)], manifest(deployment=unnamed, run_id="mine"))])

    assert result.name == "mine"
