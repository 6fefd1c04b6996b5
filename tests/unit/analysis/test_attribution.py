"""Joules by phase and request: they sum to the counter whatever the requests look like, and are right where the truth is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.analysis import PowerLog, constant, failed, group, manifest, on_boards, power_log, request, run

from pd_analysis.doubts.one_load import doubts
from pd_analysis.energy.attribution import RoleEnergy, attribution_of, spans_of, summed_attribution
from pd_analysis.energy.phase_fit import fit, least
from pd_analysis.energy.time_slices import Slices, Spans, covered
from pd_analysis.energy.window import energy_of
from pd_analysis.records.run import Run
from pd_analysis.tables.energy_by_phase import energy_by_phase
from pd_contracts.names import Role, Topology
from pd_contracts.records import EngineTokens, Manifest, RequestRecord
from pd_contracts.timing import Stages


def roles(of: Run) -> dict[Role, RoleEnergy]:
    return {role.role: role for role in attribution_of(of, energy_of(of))}


def spans(*rows: tuple[float, float, float]) -> Spans:
    start, end, tokens = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return Spans(start, end, tokens)


moments = st.floats(-5, 15, allow_nan=False)
requests_of_any_shape = st.lists(
    st.tuples(moments, st.floats(0, 20), st.integers(0, 100_000)).map(lambda row: (row[0], row[0] + row[1], row[2])), min_size=1, max_size=12
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(requests_of_any_shape, st.lists(st.floats(0, 1e4), min_size=50, max_size=50))
@example([(3.4, 13.9, 1)], [float(slice_ in {16, 48}) for slice_ in range(50)])  # begins 4e-16 s before a slice does
def test_shares_and_residual_sum_to_the_joules_of_any_requests(
    rows: list[tuple[float, float, float]], slices_j: list[float]
) -> None:
    joules = np.array(slices_j)

    shares, residual = Slices((0.0, 10.0), 0.2).share(joules, spans(*rows))

    assert (shares >= 0).all()
    assert residual >= 0
    assert shares.sum() + residual == pytest.approx(joules.sum(), rel=1e-9, abs=1e-6)


def test_energy_after_a_request_without_tokens_is_attributed_to_none() -> None:
    # The rates 1/3 and 2/3 come and go; their sums and differences need not meet at nought.
    joules = np.ones(50)

    shares, residual = Slices((0.0, 10.0), 0.2).share(joules, spans((0, 3, 1), (0, 10, 0), (0, 1.5, 1)))

    assert shares == pytest.approx(
        [7 / 3 + 0.5 + 7, 0, 14 / 3 + 0.5]
    )  # seven slices, the one the third ends in, seven more
    assert residual == pytest.approx(35)


def test_a_slice_is_shared_by_the_tokens_that_are_in_work_in_it() -> None:
    # 1 s slices of 100 J. Tokens a second: the first request 10 in 0-2 s, the second 30 in 1-3 s; nobody in the last.
    shares, residual = Slices((0.0, 4.0), 1.0).share(np.full(4, 100.0), spans((0, 2, 20), (1, 3, 60)))

    assert shares == pytest.approx([100 + 25, 75 + 100])
    assert residual == pytest.approx(100)


def test_a_request_that_began_before_the_window_pays_for_its_part_in_it() -> None:
    shares, residual = Slices((10.0, 12.0), 1.0).share(np.full(2, 50.0), spans((0, 11, 110), (11, 30, 19)))

    assert shares == pytest.approx([50, 50])
    assert residual == 0


def test_covered_time_counts_overlapping_requests_once() -> None:
    found = covered(spans((5, 6, 1), (0, 2, 1), (1, 3, 1), (2.5, 2.7, 1)))

    assert list(zip(found.start, found.end, found.tokens, strict=True)) == [(0, 3, 3), (5, 6, 1)]


def served(start: float, prefill_s: float, decode_s: float, **changes: object) -> RequestRecord:
    """100 prompt tokens, three output tokens."""
    stages = Stages(queue=0.0, prefill=prefill_s * 1e3, kv_and_first_decode=0.0, decode=0.0, decode_instance="d")
    index = int(start * 1000)
    return request(index, start, ttft=prefill_s, gaps=[decode_s / 2] * 2, stages=stages, **changes)


def disagg(records: list[RequestRecord], power: PowerLog, **changes: object) -> Run:
    return run(records, manifest(Topology.DISAGG, window=(2.0, 8.0), **changes), power)


def two_boards(prefill_w: float = 600.0, decode_w: float = 300.0) -> PowerLog:
    return power_log({0: (Role.PREFILL, constant(prefill_w)), 1: (Role.DECODE, constant(decode_w))})


def test_disaggregated_requests_pay_on_each_board_for_their_phase_there() -> None:
    # prefill is in work during 2-3 and 4-5 s, decode during 3-4 and 5-7 s
    found = roles(disagg([served(2.0, 1.0, 1.0), served(4.0, 1.0, 2.0)], two_boards()))

    prefill, decode = found[Role.PREFILL], found[Role.DECODE]
    assert prefill.phases[0].requests_j == pytest.approx([600, 600])
    assert prefill.residual_j == pytest.approx(4 * 600)
    assert decode.phases[0].requests_j == pytest.approx([300, 600])
    assert decode.residual_j == pytest.approx(3 * 300)
    assert prefill.energy_j == pytest.approx(6 * 600)


def test_failed_and_warm_up_requests_are_named_apart() -> None:
    records = [
        request(0, 2.0, ttft=1.0, gaps=[0.5, 0.5], warmup=True),
        served(4.0, 1.0, 1.0),
        failed(1, 6.0, end=7.0),
    ]

    found = roles(disagg(records, two_boards()))

    prefill = found[Role.PREFILL]
    assert prefill.phases[0].requests_j == pytest.approx([600])
    assert prefill.phases[0].others_j == pytest.approx(1200)
    assert prefill.residual_j == pytest.approx(6 * 600 - 1800)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(0, 9), st.floats(0.001, 3), st.floats(0.002, 4), st.booleans()), min_size=1, max_size=9
    ),
    st.booleans(),
)
def test_every_role_sums_to_its_counter(rows: list[tuple[float, float, float, bool]], combined: bool) -> None:
    records = [served(start, prefill, decode, warmup=warm) for start, prefill, decode, warm in sorted(rows)] + [
        served(9.5, 0.1, 0.1)
    ]

    def wave(t: np.ndarray) -> np.ndarray:
        return np.asarray(300 + 200 * np.sin(3 * t))

    role = Role.COMBINED if combined else Role.DECODE
    power = power_log({0: (role, wave), 1: (role, constant(120.0))})
    measured = run(records, on_boards(manifest(window=(1.03, 9.87)), power), power)
    energy = energy_of(measured)
    assert energy is not None
    (found,) = attribution_of(measured, energy)

    assert found.energy_j == pytest.approx(energy.total_j, rel=1e-9)
    attributed = sum(phase.energy_j for phase in found.phases)
    assert attributed + found.residual_j == pytest.approx(energy.total_j, rel=1e-9)


def test_static_and_dynamic_parts_sum_to_the_energy() -> None:
    def model(t: np.ndarray) -> np.ndarray:
        return np.where(t < 3, 80.0, 600.0)

    found = roles(disagg([served(3.0, 2.0, 3.0)], power_log({0: (Role.PREFILL, model), 1: (Role.DECODE, model)})))

    assert found[Role.PREFILL].static_j == pytest.approx(480)
    assert found[Role.PREFILL].dynamic_j == pytest.approx(found[Role.PREFILL].energy_j - 480)


# --- combined engines ------------------------------------------------------------------------------------------------------


def loaded(seed: int, until: float = 60.0) -> list[tuple[float, float, float]]:
    """Start, prefill and decode seconds of requests at random."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.exponential(1.5, 200))
    return [
        (float(start), float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.5, 3.0))) for start in starts[starts < until]
    ]


def watts(rows: list[tuple[float, float, float]], prefill_w: float, decode_w: float, idle_w: float) -> object:
    """A board that draws so much for every request in prefill, and for every one in decode."""

    def model(t: np.ndarray) -> np.ndarray:
        power = np.full_like(t, idle_w)
        for start, prefill, decode in rows:
            power += prefill_w * ((t >= start) & (t < start + prefill))
            power += decode_w * ((t >= start + prefill) & (t < start + prefill + decode))
        return power

    return model


def combined(rows: list[tuple[float, float, float]], model: object, window: tuple[float, float] = (1.0, 62.0)) -> Run:
    # 1,000 prompt tokens per second of prefill, 100 output tokens per second of decode: what the board spends on is what is counted
    records = [
        request(
            number,
            start,
            ttft=prefill,
            gaps=[decode / 2] * 2,
            prompt_tokens=round(prefill * 1000),
            output_tokens=round(decode * 100),
        )
        for number, (start, prefill, decode) in enumerate(rows)
    ]
    power = power_log({0: (Role.COMBINED, model)}, end=70.0)  # type: ignore[dict-item]
    return run(records, on_boards(manifest(window=window), power), power)


@pytest.mark.parametrize(("prefill_w", "decode_w"), [(300.0, 60.0), (100.0, 100.0), (40.0, 90.0)])
def test_the_phases_of_a_combined_board_are_told_apart_where_the_truth_is_known(
    prefill_w: float, decode_w: float
) -> None:
    rows = loaded(3)
    measured = combined(rows, watts(rows, prefill_w, decode_w, 80.0))
    (found,) = roles(measured).values()
    spans_ = spans_of(measured.requests.rows, Role.COMBINED)
    slices = Slices(measured.window, 0.2)
    power = power_log({0: (Role.COMBINED, watts(rows, prefill_w, decode_w, 80.0))}, end=70.0)[1]  # type: ignore[dict-item]
    joules = np.diff(np.interp(slices.edges, [s.t for s in power], [(s.energy_mj or 0) / 1e3 for s in power]))
    split = fit(slices, joules, *spans_, 80.0)

    assert [phase.phase for phase in found.phases] == ["prefill", "decode"]
    assert (found.r2 or 0) > 0.9
    assert split is not None
    # 1,000 prompt tokens per second of prefill; decode's draw may be put on its tokens or on its time
    assert split.prompt_j == pytest.approx(prefill_w / 1000, rel=0.1)
    decoding = split.output_j * slices.weights(spans_[1]) + split.decode_w * slices.weights(covered(spans_[1]))
    assert decoding.sum() == pytest.approx(decode_w * sum(decode for _, _, decode in rows), rel=0.1)


def test_a_combined_board_whose_power_follows_nothing_is_doubted_or_not_divided() -> None:
    rows = loaded(4)
    noise = np.random.default_rng(0)

    def model(t: np.ndarray) -> np.ndarray:
        return np.repeat(noise.uniform(100, 700, len(t) // 100 + 1), 100)[: len(t)]

    compared = group(combined(rows, model))
    (found,) = compared.results[0].attribution

    explained = found.r2 is not None and found.r2 >= 0.5
    assert not explained
    said = [doubt.sentence for doubt in doubts(compared) if "a guess" in doubt.sentence]
    assert bool(said) == (len(found.phases) == 2)


def test_a_short_run_is_not_divided_into_phases() -> None:
    rows = [(1.0, 0.5, 1.0), (2.0, 0.5, 1.0)]
    (found,) = roles(combined(rows, watts(rows, 300, 60, 80), window=(1.0, 5.0))).values()

    assert [phase.phase for phase in found.phases] == ["both"]
    assert found.phases[0].energy_j + found.residual_j == pytest.approx(found.energy_j)


def test_least_squares_never_goes_below_zero() -> None:
    columns = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

    assert least(columns, np.array([2.0, 3.0, 5.0])) == pytest.approx([2.0, 3.0])
    assert least(columns, np.array([2.0, -3.0, 2.0])) == pytest.approx([2.0, 0.0])


# --- tokens ------------------------------------------------------------------------------------------------------------------


def counted(of: Run, *readings: EngineTokens) -> Run:
    return Run(of.path, of.manifest, of.requests, of.gpu, of.samples, of.cut_s, readings)


def reading(t: float, **changes: object) -> EngineTokens:
    return EngineTokens(**{"t": t, "name": "prefill-0", "role": Role.PREFILL, **changes})  # type: ignore[arg-type]


def computed(of: Run) -> tuple[Any, bool]:
    (phase,) = roles(of)[Role.PREFILL].phases
    return phase.tokens, phase.computed


@pytest.fixture(name="pair")
def _pair() -> Run:
    return disagg([served(2.0, 1.0, 1.0), served(6.0, 1.0, 1.0)], two_boards())


def test_computed_tokens_are_the_engines_own_count(pair: Run) -> None:
    run_ = counted(pair, reading(0.5, computed=1000.0), reading(4.0, computed=1100.0), reading(9.0, computed=1160.0))

    assert computed(run_) == (pytest.approx(160.0), True)
    assert roles(run_)[Role.PREFILL].per_token(roles(run_)[Role.PREFILL].phases[0]) == pytest.approx(3600 / 160)


def test_an_engine_without_that_count_gives_prompt_tokens_less_cache_hits(pair: Run) -> None:
    run_ = counted(
        pair,
        reading(0.5, prompt=500.0, cache_hits=100.0),
        reading(9.0, prompt=700.0, cache_hits=140.0, external_hits=10.0),
    )

    assert computed(run_) == (pytest.approx(150.0), True)


def test_tokens_between_a_reading_and_the_windows_edge_are_where_the_work_was(pair: Run) -> None:
    # Between 0.5 and 4 s one request was in prefill, from 2 to 3 s: all of its tokens are inside, none before the window.
    inside = counted(pair, reading(0.5, computed=0.0), reading(4.0, computed=100.0), reading(9.0, computed=100.0))
    # A warm-up request had half of the tokens before the window began.
    warm = disagg([served(0.6, 1.0, 0.1, warmup=True), served(2.0, 1.0, 1.0), served(6.0, 1.0, 1.0)], two_boards())
    shared = counted(warm, reading(0.5, computed=0.0), reading(4.0, computed=200.0), reading(9.0, computed=200.0))

    assert computed(inside)[0] == pytest.approx(100.0, abs=0.1)
    assert computed(shared)[0] == pytest.approx(100.0, abs=0.1)


@pytest.mark.parametrize(
    "readings",
    [
        pytest.param([], id="no engine was known"),
        pytest.param([reading(0.5, error="refused")], id="none answered"),
        pytest.param([reading(3.0, computed=0.0), reading(9.0, computed=9.0)], id="they begin too late"),
        pytest.param([reading(0.5, computed=50.0), reading(9.0, computed=9.0)], id="the engine began anew"),
    ],
)
def test_without_the_engines_counters_all_prompt_tokens_are_used_and_said_so(
    pair: Run, readings: list[EngineTokens]
) -> None:
    assert computed(counted(pair, *readings)) == (200.0, False)


def test_engines_of_a_role_are_summed_and_all_must_tell(pair: Run) -> None:
    first = [reading(0.5, computed=0.0), reading(9.0, computed=70.0)]
    second = [reading(0.5, name="prefill-1", computed=5.0), reading(9.0, name="prefill-1", computed=35.0)]
    decode = [reading(t, name="decode-0", role=Role.DECODE, computed=3.0) for t in (0.5, 9.0)]
    silent = [reading(t, name="prefill-1", error="refused") for t in (0.5, 9.0)]

    assert computed(counted(pair, *first, *second, *decode)) == (pytest.approx(100.0), True)
    assert computed(counted(pair, *first, *silent)) == (200.0, False)


# --- report ------------------------------------------------------------------------------------------------------------------


def cells(of: Run) -> dict[str, list[str]]:
    found = energy_by_phase(group(of))
    assert found is not None
    return {row[0].text: [cell.text for cell in row[1:]] for row in found.rows}


def test_the_table_has_roles_phases_and_the_whole(pair: Run) -> None:
    found = cells(counted(pair, reading(0.5, computed=0.0), reading(9.0, computed=150.0)))

    assert list(found) == ["disagg, prefill", "disagg, decode", "disagg, all"]
    energy, _, _, tokens, each, requests, others, nobody, *_, split = found["disagg, prefill"]
    assert (energy, tokens, each, split) == ("3,600 J", "150 computed", "24.0", "by GPU")
    assert (requests, others, nobody) == ("1,200 J", "0 J", "2,400 J")


def test_phases_of_a_combined_board_have_rows_of_their_own() -> None:
    rows = loaded(3)
    found = cells(combined(rows, watts(rows, 300, 60, 80.0)))

    assert list(found) == ["combined, combined", "combined, its prefill", "combined, its decode", "combined, all"]
    assert found["combined, its prefill"][-1] == "fitted, R² 1.00"


def test_repeats_add_up_and_what_does_not_fit_together_is_left_out(pair: Run) -> None:
    one = attribution_of(pair, energy_of(pair))
    both = summed_attribution([one, one])

    assert [role.energy_j for role in both] == [2 * role.energy_j for role in one]
    assert both[0].phases[0].requests_j.size == 4
    assert summed_attribution([one, ()]) == ()


def test_a_run_without_power_has_no_row() -> None:
    assert energy_by_phase(group(run([request(0)], _about()))) is None


def _about() -> Manifest:
    return manifest(Topology.DISAGG)
