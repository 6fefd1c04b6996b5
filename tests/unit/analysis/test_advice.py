"""What the report concludes: rates, break-evens, ratios and limits, from series whose answers were worked out by hand."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.analysis import constant, deployment, failed, group, manifest, power_log, request, run, workload

from pd_analysis.conclusions.advice import bottleneck, limits_table
from pd_analysis.conclusions.lengths import of_lengths
from pd_analysis.conclusions.sweeps import of_sweep, ratio_of
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.evaluation import evaluate
from pd_analysis.numbers.interference import interference
from pd_analysis.numbers.slo_attainment import attainment
from pd_analysis.numbers.steadiness import steadiness
from pd_analysis.numbers.sweep import Sweep, best_rate, beyond, break_even, crossing, sweeps
from pd_analysis.records.run import Run
from pd_analysis.tables.rates import rate_table
from pd_contracts.names import Role, Topology
from pd_contracts.records import ClientHealth, EngineInfo
from pd_contracts.timing import Stages


def at(topology: Topology, rate: float, *, ttft: float, good: float = 1.0, tokens: int = 100, **changes: object) -> Run:
    """100 requests of one TTFT, of which a share does not fail."""
    records = [
        request(index, index / 20, ttft=ttft) if index < round(100 * good) else failed(index, index / 20)
        for index in range(100)
    ]
    about = manifest(
        topology,
        workload=workload(rate=rate, input_tokens=tokens, goodput={"ttft": 900.0}),
        run_id=f"{topology}{rate}{tokens}{changes}",
        **changes,
    )
    return run(records, about)


def swept(*runs: Run) -> Sweep:
    (found,) = sweeps(evaluate(runs))
    return found


def crossing_sweep() -> Sweep:
    """Combined has TTFT of 100, 200, 300 ms at 2, 4, 6 req/s, disagg 150, 200 and 250; two GPUs each."""
    combined = [at(Topology.COMBINED, rate, ttft=rate / 20, good=1.3 - rate / 10) for rate in (3.0, 4.0, 6.0)]
    disagg = [at(Topology.DISAGG, rate, ttft=0.1 + rate / 40) for rate in (3.0, 4.0, 6.0)]
    return swept(*combined, *disagg)


def test_series_are_in_order_of_rate_and_plain_serving_is_first() -> None:
    found = crossing_sweep()

    assert [series.name for series in found.series] == ["combined", "disagg"]
    assert [rate for rate, _ in found.series[0].points(lambda _: 1.0)] == [1.5, 2.0, 3.0]


def test_the_best_rate_is_where_attainment_falls_through_90_percent() -> None:
    # Combined keeps 100% at 1.5, 90% at 2 and 70% at 3 req/s per GPU; disagg keeps all everywhere.
    combined, disagg = crossing_sweep().series

    assert best_rate(combined) == pytest.approx(2.0)
    assert (best_rate(disagg), beyond(disagg)) == (3.0, True)
    assert not beyond(combined)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 1.0), (2, 0.8)], 1.5),
        ([(1, 0.8), (2, 0.95)], None),
        ([(1, 1.0), (2, 0.95)], 2),
        ([], None),
    ],
)
def test_a_crossing_is_between_measured_points(points: list[tuple[float, float]], expected: float | None) -> None:
    assert crossing(points, 0.9) == expected if expected is None else crossing(points, 0.9) == pytest.approx(expected)


def test_break_even_is_where_two_lines_cross() -> None:
    assert break_even([(0, 0), (10, 10)], [(0, 4), (10, 6)]) == pytest.approx([5.0])
    assert break_even([(0, 0), (10, 1)], [(0, 4), (10, 6)]) == []
    assert break_even([(0, 0), (1, 1)], [(2, 4), (3, 0)]) == []  # no rate that both were offered
    assert break_even([(0, 0)], [(0, 1), (1, 2)]) == []


@given(
    ys=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=2, max_size=8),
)
def test_break_even_does_not_depend_on_which_comes_first(ys: list[tuple[float, float]]) -> None:
    one = [(float(x), y) for x, (y, _) in enumerate(ys)]
    two = [(float(x), y) for x, (_, y) in enumerate(ys)]

    assert break_even(one, two) == pytest.approx(break_even(two, one))


def test_a_sweep_says_what_each_gpu_serves_and_where_the_lines_cross() -> None:
    said = " ".join(of_sweep(crossing_sweep()))

    assert (
        "Highest load within TTFT ≤ 900 ms for 90% of requests: disagg at least 3.00 req/s per GPU. Then: combined 2.00."
        in said
    )


def test_each_disaggregated_deployment_is_compared_with_plain_serving_on_as_many_gpus() -> None:
    def on(gpus: int, topology: Topology, ttft: float) -> list[Run]:
        label = f"{gpus} {topology}"
        served = deployment(topology, label=label, gpus=gpus)
        return [at(topology, rate, ttft=ttft, good=1.0, deployment=served) for rate in (4.0, 8.0)]

    both = [on(gpus, *side) for gpus in (2, 4) for side in ((Topology.COMBINED, 0.1), (Topology.DISAGG, 0.2))]
    said = of_sweep(swept(*(run for runs in both for run in runs)))

    assert [sentence.split(":")[0] for sentence in said[1:]] == [
        "2 disagg against 2 combined",
        "4 disagg against 4 combined",
    ]
    assert all("TTFT p99, " in sentence for sentence in said[1:])


def test_the_best_ratio_is_the_one_with_the_most_goodput_per_gpu() -> None:
    def shape(prefill: int, decode: int, good: float) -> list[Run]:
        engines = [
            EngineInfo(name=f"{role}-{number}", role=role)
            for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode))
            for number in range(count)
        ]
        label = f"disagg {prefill}P{decode}D"
        served = msgspec.structs.replace(deployment(Topology.DISAGG), engines=engines, label=label, gpus=4)
        return [at(Topology.DISAGG, rate, ttft=0.1, good=good, deployment=served) for rate in (4.0, 8.0)]

    said = of_sweep(swept(*shape(1, 3, 0.5), *shape(2, 2, 1.0)))

    # 100 good requests in 10 s on 4 GPUs, against 50
    assert said[1] == (
        "Of the measured ratios of prefill to decode, 2P2D gives the most goodput per GPU (2.50 req/s; 1P3D: 1.25 req/s)."
    )


def test_long_prompts_can_turn_the_choice() -> None:
    # 100 and 500 ms against 200 and 400 ms at prompts of 1,000 and 2,000 tokens: both have 300 ms half way
    runs = [
        at(topology, 2.0, ttft=ttft, tokens=tokens)
        for topology, series in {
            Topology.COMBINED: {1000: 0.1, 2000: 0.5},
            Topology.DISAGG: {1000: 0.2, 2000: 0.4},
        }.items()
        for tokens, ttft in series.items()
    ]

    assert of_lengths(evaluate(runs)) == (
        "Break-even in TTFT p99 at 2 req/s: combined and disagg cross at prompts of 1,500 tokens.",
    )


def test_rates_are_tabled_with_their_tails() -> None:
    table = rate_table(crossing_sweep().series[0])

    assert [cell.text for cell in table.rows[0]][:3] == ["3 req/s", "1.50", "150"]
    assert table.rows[1][table.header.index("Within limits")].text.startswith("90% (")


def test_attainment_of_the_given_limits_is_the_runs_own() -> None:
    result = evaluate([at(Topology.COMBINED, 2.0, ttft=0.1, good=0.6)])[0]

    assert attainment(result, {"ttft": 900.0}) == result.metrics.attainment == pytest.approx(0.6)
    assert attainment(result, {"ttft": 900.0}, scale=0.1) == 0


@hypothesis_settings(deadline=None)
@given(scales=st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)))
def test_wider_limits_are_never_met_by_fewer(scales: tuple[float, float]) -> None:
    result = evaluate([run([request(n, ttft=n / 100, gaps=[n / 1000]) for n in range(1, 20)])])[0]
    tight, wide = sorted(scales)

    limits = {"ttft": 100.0, "tpot": 10.0}
    assert attainment(result, limits, tight) <= attainment(result, limits, wide)


def test_the_table_of_limits_names_who_keeps_more_of_them() -> None:
    slow_first = [request(n, n / 20, ttft=0.295, gaps=[0.0098, 0.0098]) for n in range(200)]
    slow_later = [request(n, n / 20, ttft=0.098, gaps=[0.0295, 0.0295]) for n in range(200)]
    table = limits_table(group(run(slow_later), run(slow_first, manifest(Topology.DISAGG))))

    assert table is not None
    cells = {(row[0].text, head): cell.text for row in table.rows for head, cell in zip(table.header, row, strict=True)}
    assert cells["TTFT ≤ 300 ms", "TPOT ≤ 10 ms"] == "disagg: 100%, 0%"
    assert cells["TTFT ≤ 100 ms", "TPOT ≤ 30 ms"] == "combined: 100%, 0%"
    assert cells["TTFT ≤ 100 ms", "TPOT ≤ 10 ms"] == "none: 0%, 0%"
    assert cells["TTFT ≤ 300 ms", "TPOT ≤ 30 ms"] == "equal: 100%, 100%"


def test_what_limits_a_deployment_is_told_from_stages_and_busy_gpus() -> None:
    stages = Stages(queue=10.0, prefill=60.0, kv_and_first_decode=30.0, decode=300.0, decode_instance="decode-0")
    power = power_log({0: (Role.PREFILL, constant(600.0)), 1: (Role.DECODE, constant(400.0))})
    records = [request(index, index / 20, stages=stages) for index in range(100)]

    (result,) = evaluate([run(records, manifest(Topology.DISAGG), power)])

    assert bottleneck(result) == (
        "disagg: the mean time to the first token, at the proxy, is 100 ms: 10% waiting in the proxy, 60% prefill and 30% the "
        "KV hand-off and first decode step; prefill GPUs busy 90% of the time and decode GPUs busy 90% of the time, so the prefill and decode GPUs "
        "will limit it first, and keep up at this rate."
    )
    assert ratio_of(result) == "1P1D"


def filling(count: int = 90) -> list[Run]:
    """Each request waits 50 ms longer than the one before it, as in a queue that only grows."""
    return [run([request(index, index / 10, ttft=0.1 + index * 0.05) for index in range(count)])]


def test_a_queue_that_grows_is_saturated_and_a_level_one_is_not() -> None:
    (full,) = evaluate(filling())
    (level,) = evaluate([run([request(index, index / 10) for index in range(90)])])

    assert steadiness(full).saturated
    assert not steadiness(level).saturated
    assert steadiness(level).settle_s == 0
    assert [doubt for doubt in doubts(group(*filling())) if "saturated" in doubt.sentence]


def kept(
    rate: float, *, grows: bool = False, topology: Topology = Topology.COMBINED, client: ClientHealth | None = None
) -> Run:
    """Everything within the limits, by a queue that is empty or that grows."""
    records = [request(index, index / 10, ttft=0.1 + index * 0.005 if grows else 0.1) for index in range(90)]
    about = manifest(
        topology, workload=workload(rate=rate, input_tokens=100, goodput={"ttft": 900.0}), run_id=f"{topology}{rate}"
    )
    return run(records, msgspec.structs.replace(about, client=client or about.client))


def lost(rate: float) -> Run:
    return at(Topology.COMBINED, rate, ttft=2.0, good=0.0)


def test_a_limit_that_a_growing_queue_still_keeps_is_at_most_what_it_carries() -> None:
    said = of_sweep(swept(kept(2.0), kept(4.0, grows=True), lost(6.0)))

    assert said[0].startswith(
        "Highest load within TTFT ≤ 900 ms for 90% of requests: combined at most 2.10 req/s per GPU"
    )
    assert "Requests were already piling up while the limits were met" in said[1]
    assert said[1].endswith("combined from 2.00 req/s per GPU.")
    assert "at most" not in of_sweep(swept(kept(2.0), kept(4.0), lost(6.0)))[0]


def test_points_that_are_not_to_be_decided_on_are_left_out_and_counted() -> None:
    late = ClientHealth(valid=False, dispatch_lag_ms={"p99": 40.0}, receive_lag_ms={}, limit_ms=5.0)
    found = swept(kept(2.0), kept(4.0), kept(6.0, client=late))
    said = of_sweep(found)

    assert "requests: combined at least 2.00 req/s per GPU" in said[0]
    assert said[1] == "1 of 3 points is left out; the doubts give the reason."
    others = [kept(rate, topology=Topology.DISAGG) for rate in (2.0, 4.0)]
    nothing = swept(*(kept(rate, client=late) for rate in (2.0, 4.0)), *others)
    assert of_sweep(nothing)[0].endswith("Then: combined unknown.")


def test_a_slow_start_is_a_reason_to_cut() -> None:
    records = [request(index, index / 10, ttft=0.5 if index < 10 else 0.1) for index in range(100)]
    found = group(run(records))

    assert steadiness(found.baseline).settle_s == pytest.approx(1.0)
    assert [doubt.remedy for doubt in doubts(found) if "warm-up" in doubt.sentence] == [
        "Leave them out with --cut 1, or measure with a longer --warmup."
    ]


def test_a_gap_beside_a_first_token_is_told_from_the_others() -> None:
    # Request 0 writes at 0.1, 0.2, 0.5 s; the first token of request 1 comes at 0.4 s, within the second gap.
    seen = interference(
        group(run([request(0, 0.0, ttft=0.1, gaps=[0.1, 0.3]), request(1, 0.3, ttft=0.1, gaps=[0.05])])).baseline
    )

    assert [(round(gap, 3), bool(beside)) for gap, beside in zip(seen.gap, seen.beside, strict=True)] == [
        (0.1, False),
        (0.05, False),
        (0.3, True),
    ]
    assert seen.tail(beside=True) == pytest.approx(0.3)


def outputs(topology: Topology, *hashes: str | None) -> Run:
    return run([request(n, output_hash=value) for n, value in enumerate(hashes)], manifest(topology))


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (("aa", "bb"), None),
        (("aa", "cc"), "1 of 2 outputs of combined and disagg differ"),
        ((None, None), "were not compared"),
    ],
)
def test_outputs_are_compared_by_their_hashes(theirs: tuple[str | None, ...], says: str | None) -> None:
    pair = group(outputs(Topology.COMBINED, "aa", "bb"), outputs(Topology.DISAGG, *theirs))

    about_outputs = [doubt.sentence for doubt in doubts(pair) if "outputs of" in doubt.sentence.lower()]

    assert (says is None and about_outputs == []) or (says is not None and says in about_outputs[0])


def test_shapes_are_in_the_order_of_their_lengths() -> None:
    runs = [at(Topology.COMBINED, rate, ttft=0.1, tokens=tokens) for tokens in (8192, 2048, 512) for rate in (4.0, 8.0)]

    shapes = [sweep.series[0].results[0].load.input_tokens for sweep in sweeps(evaluate(runs))]

    assert shapes == [512, 2048, 8192]


def test_curves_with_other_limits_are_not_drawn_together() -> None:
    """What carries more under limits ten times as wide may carry less."""
    wide = []
    for one in (at(Topology.DISAGG, rate, ttft=0.1) for rate in (4.0, 8.0)):
        load = msgspec.structs.replace(one.manifest.workload, goodput={"ttft": 9000.0})
        wide.append(replace(one, manifest=msgspec.structs.replace(one.manifest, workload=load)))
    found = sweeps(evaluate([*(at(Topology.COMBINED, rate, ttft=0.1) for rate in (4.0, 8.0)), *wide]))

    assert [[series.name for series in sweep.series] for sweep in found] == [["combined"], ["disagg"]]
