"""Energy of boards with a known power curve."""

from typing import Any

import numpy as np
import pytest
from support.analysis import CLOCK, WALL, PowerLog, constant, manifest, on_boards, power_log, request, run

from pd_analysis.energy.checks import Check
from pd_analysis.energy.joules import Energy, per_token
from pd_analysis.energy.moments import clock_shift, idle_stretches
from pd_analysis.energy.window import energy_of
from pd_analysis.numbers.evaluation import evaluate
from pd_analysis.records.collector import requests_of
from pd_contracts.names import Role, Topology
from pd_contracts.records import Clock, Manifest, RequestRecord


def _energy(power: PowerLog, about: Manifest | None = None, records: list[RequestRecord] | None = None) -> Energy:
    about = about or manifest(Topology.DISAGG, window=(2.0, 8.0))
    energy = energy_of(run(records or [request(0)], on_boards(about, power), power))
    assert energy is not None
    return energy


def _ramp(t: np.ndarray) -> np.ndarray:
    return 100 + 20 * t


def test_joules_of_a_constant_and_a_ramp() -> None:
    # 600 W × 6 s; ∫ from 2 to 8 of (100 + 20 t) dt = 600 + 10 × (64 − 4) = 1,200 J
    energy = _energy(power_log({0: (Role.PREFILL, constant(600.0)), 1: (Role.DECODE, _ramp)}))

    assert energy.of(Role.PREFILL) == pytest.approx(3600.0, abs=1e-6)
    assert energy.of(Role.DECODE) == pytest.approx(1200.0, abs=1e-6)
    assert energy.total_j == pytest.approx(4800.0, abs=1e-6)
    assert [gpu.method for gpu in energy.gpus] == ["counter", "counter"]
    assert [gpu.mean_w for gpu in energy.gpus] == pytest.approx([600.0, 200.0])
    # the last sample inside the window is at 8 s: 100 + 20 × 8
    assert energy.gpus[1].peak_w == pytest.approx(260.0)


def test_the_edges_of_the_window_are_interpolated_between_samples() -> None:
    # samples every 0.1 s; the window starts and ends between two: 500 W × 5.94 s
    energy = _energy(power_log({0: (Role.DECODE, constant(500.0))}), manifest(window=(2.03, 7.97)))

    assert energy.gpus[0].counter_j == pytest.approx(2970.0, abs=1e-6)
    assert energy.gpus[0].integral_j == pytest.approx(2970.0, abs=1e-6)


def _pulse(t: np.ndarray) -> np.ndarray:
    """A wave of 0.1 s around 300 W, which samples every 0.1 s see only at its peaks."""
    return 300 + 100 * np.cos(2 * np.pi * t / 0.1)


def test_closure_is_that_of_the_reading_nearer_to_the_counter() -> None:
    # samples see 400 W, the counter and the board's average of 1 s see 300 W (the average from its first second on)
    board = _energy(power_log({0: (Role.DECODE, _pulse)})).gpus[0]

    assert board.integral_j == pytest.approx(400 * 6)
    assert board.counter_j == pytest.approx(300 * 6, abs=1)
    assert board.average_j == pytest.approx(300 * 6, rel=0.005)
    assert board.closure == pytest.approx(0, abs=0.005)


def test_closure_shows_what_no_reading_explains() -> None:
    # 400 W × 6 s over 300 W × 6 s
    board = _energy(power_log({0: (Role.DECODE, _pulse)}, power_average_w=None)).gpus[0]

    assert board.closure == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("without", "joules"),
    [
        # the average of the last second is half a second late, which does not cost 20 W/s × 0.5 s × 6 s = 60 J
        pytest.param({"energy_mj": None}, 1200.0, id="no counter: integral of the board's average"),
        pytest.param({"energy_mj": None, "power_average_w": None}, 1200.0, id="nor average: of instantaneous power"),
    ],
)
def test_a_missing_counter_is_replaced_and_said_so(without: dict[str, Any], joules: float) -> None:
    board = _energy(power_log({0: (Role.DECODE, _ramp)}, **without)).gpus[0]

    assert board.energy_j == pytest.approx(joules, abs=0.5)
    assert board.method == "integral"
    assert board.closure is None


def test_a_counter_that_goes_backwards_is_not_believed() -> None:
    header, samples = power_log({0: (Role.DECODE, constant(100.0))})
    reset = [
        type(s)(**{name: getattr(s, name) for name in s.__struct_fields__} | {"energy_mj": 0.0}) for s in samples[50:]
    ]

    board = _energy((header, samples[:50] + reset)).gpus[0]

    assert (board.counter_j, board.method) == (None, "integral")
    assert board.energy_j == pytest.approx(600.0)


def test_another_hosts_clock_is_mapped_by_the_wall_clock() -> None:
    here = power_log({0: (Role.DECODE, _ramp)})
    # the recorder's host booted 5,000 s later: at the same wall time its monotonic clock shows 5,000 s less
    header, samples = power_log({0: (Role.DECODE, _ramp)}, clock=Clock(wall=WALL, monotonic=-5000.0))
    away = [type(s)(**{name: getattr(s, name) for name in s.__struct_fields__} | {"t": s.t - 5000.0}) for s in samples]

    assert _energy((header, away)).total_j == pytest.approx(_energy(here).total_j, rel=1e-9)


def test_readings_of_one_hosts_clocks_that_differ_by_a_hair_are_one_clock() -> None:
    drifted = Clock(wall=WALL + 100.03, monotonic=100.0)

    assert clock_shift(drifted, CLOCK) == 0.0
    assert clock_shift(Clock(wall=WALL + 130.0, monotonic=100.0), CLOCK) == pytest.approx(30.0)


def test_a_window_that_samples_do_not_cover_has_no_energy() -> None:
    energy = _energy(power_log({0: (Role.DECODE, constant(100.0))}, end=7.0))

    (fault,) = energy.gpus[0].faults
    assert fault.check is Check.UNREAD
    assert energy.total_j is None
    assert energy.gpus[0].mean_w is None


def test_samples_that_end_within_an_interval_of_the_window_cover_it() -> None:
    assert _energy(power_log({0: (Role.DECODE, constant(100.0))}, end=7.9)).total_j == pytest.approx(590.0)


def test_boards_without_a_role_are_not_counted() -> None:
    energy = _energy(power_log({0: (Role.PREFILL, constant(500.0)), 1: (None, constant(80.0))}))

    assert energy.total_j == pytest.approx(3000.0)
    assert [gpu.index for gpu in energy.serving] == [0]


def test_idle_power_is_the_lowest_median_without_a_request() -> None:
    # idle until 3 s and, settled, from 7 s; the board draws 80 W before and 90 W after the load
    def model(t: np.ndarray) -> np.ndarray:
        return np.select([t < 3, t < 6.5], [80.0, 600.0], 90.0)

    energy = _energy(power_log({0: (Role.COMBINED, model)}), records=[request(0, 3.0, ttft=1.0, gaps=[1.0, 1.0])])

    assert energy.gpus[0].idle_w == pytest.approx(80.0)
    # 80 W × 6 s of window
    assert energy.idle_j([Role.COMBINED]) == pytest.approx(480.0)


def test_idle_power_is_unknown_if_requests_fill_the_recording() -> None:
    energy = _energy(power_log({0: (Role.COMBINED, constant(100.0))}), records=[request(0, 0.1, ttft=5.0, gaps=[4.0])])

    assert energy.gpus[0].idle_w is None
    assert energy.idle_j([Role.COMBINED]) is None


def test_overlapping_requests_leave_idle_only_where_none_is_under_way() -> None:
    rows = requests_of([request(0, 2.0, gaps=[4.0]), request(1, 3.0), request(2, 12.0)], {}).rows

    # until 2 s; from 1 s after 6.1 s (the first request's end) to 12 s; from 1 s after 12.12 s to the end
    assert idle_stretches(rows, 0.0, 20.0) == [
        pytest.approx((0.0, 2.0)),
        pytest.approx((7.1, 12.0)),
        pytest.approx((13.12, 20.0)),
    ]


def test_joules_a_token_by_role() -> None:
    # 3,600 J over 1,000 prompt tokens, 1,200 J over 200 output tokens, 4,800 J over 200 and over 1,200
    energy = _energy(power_log({0: (Role.PREFILL, constant(600.0)), 1: (Role.DECODE, _ramp)}))

    tokens = per_token(energy, 1000, 200)

    assert (tokens.prefill_per_prompt, tokens.decode_per_output) == pytest.approx((3.6, 6.0))
    assert (tokens.per_output, tokens.per_token) == pytest.approx((24.0, 4.0))
    assert tokens.parts_per_output == pytest.approx({Role.PREFILL: 18.0, Role.DECODE: 6.0})
    assert tokens.combined_per_token is None


def test_joules_a_token_of_combined_gpus() -> None:
    # 2 × 300 W × 6 s = 3,600 J over 200 output tokens and over 1,200 tokens
    energy = _energy(power_log({0: (Role.COMBINED, constant(300.0)), 1: (Role.COMBINED, constant(300.0))}))

    tokens = per_token(energy, 1000, 200)

    assert (tokens.combined_per_token, tokens.per_token, tokens.per_output) == pytest.approx((3.0, 3.0, 18.0))
    assert tokens.prefill_per_prompt is None


def test_joules_of_unknown_tokens_are_unknown() -> None:
    tokens = per_token(_energy(power_log({0: (Role.DECODE, constant(300.0))})), None, None)

    assert (tokens.per_output, tokens.per_token, tokens.decode_per_output) == (None, None, None)
    assert tokens.parts_per_output == {}


def test_throttling_bits_are_counted_by_reason_and_idle_is_not_one() -> None:
    # 0x1 idle, 0x4 power cap, 0x40 hardware thermal
    energy = _energy(power_log({0: (Role.DECODE, constant(300.0))}, throttle=0x45))

    assert energy.gpus[0].throttled == {"power cap": 1.0, "thermal slowdown (hardware)": 1.0}


def test_a_run_without_power_has_no_energy() -> None:
    result = evaluate([run([request(0)])])[0]

    assert (result.energy, result.tokens) == (None, None)
