"""The board's energy counter is the integral of its power."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Role
from pd_simulator.engine.board import EnergyMeter, SimulatedBoard, step_watts
from pd_simulator.profile import Draw, Profile, load_profile
from pd_simulator.steps.step_time import StepTime

# Pauses and lengths of steps in seconds, and what each draws above idle in watts.
SEGMENTS = st.lists(st.tuples(st.floats(0, 0.5), st.floats(0.001, 0.5), st.floats(0, 600)), min_size=1, max_size=30)
IDLE_W = 80.0


@pytest.fixture(name="profile")
def _profile() -> Profile:
    return load_profile("slow-exact")


def board(profile: Profile, now: float = 100.0) -> SimulatedBoard:
    return SimulatedBoard(profile, index=3, role=Role.DECODE, instance="decode-1", now=now)


@given(SEGMENTS, st.floats(0, 2))
def test_energy_is_the_sum_over_all_steps_and_pauses(segments: list[tuple[float, float, float]], rest: float) -> None:
    meter, now, joules, busy = EnergyMeter(IDLE_W, 10.0), 10.0, 0.0, 0.0

    for pause, seconds, extra in segments:
        meter.busy(now + pause, seconds, IDLE_W + extra)
        joules += pause * IDLE_W + seconds * (IDLE_W + extra)
        busy += seconds
        now += pause + seconds

    assert meter.read(now + rest) == pytest.approx((joules + rest * IDLE_W, busy))


@given(SEGMENTS, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_counter_never_falls_even_when_it_is_read_before_the_next_step_is_known(
    segments: list[tuple[float, float, float]], reads: list[float]
) -> None:
    meter, now, last_read, last = EnergyMeter(IDLE_W, 0.0), 0.0, 0.0, 0.0

    for (pause, seconds, extra), late in zip(segments, itertools.cycle(reads), strict=False):
        meter.busy(now + pause, seconds, IDLE_W + extra)
        now += pause + seconds
        last_read = max(last_read, now + late - 0.5)
        joules = meter.read(last_read)[0]
        assert joules >= last - 1e-9
        last = joules


def test_a_reading_inside_a_step_counts_the_part_that_is_over() -> None:
    meter = EnergyMeter(IDLE_W, 0.0)
    meter.busy(1.0, 2.0, 500.0)

    assert meter.read(2.0) == pytest.approx((80 + 500, 1.0))
    assert meter.watts(2.0) == pytest.approx(500.0)
    assert meter.watts(4.0) == IDLE_W


def test_a_step_that_seems_to_begin_before_the_last_one_ended_is_moved_behind_it() -> None:
    meter = EnergyMeter(0.0, 0.0)
    meter.busy(0.0, 1.0, 100.0)
    meter.busy(0.9, 1.0, 100.0)

    assert meter.read(5.0) == pytest.approx((200.0, 2.0))


def test_a_day_of_steps_keeps_only_the_last_seconds() -> None:
    meter = EnergyMeter(IDLE_W, 0.0)
    for number in range(5000):
        meter.busy(number * 0.01, 0.005, 300.0)

    assert len(meter._nodes) < 1000
    assert meter.read(50.0)[0] == pytest.approx(25 * 300 + 25 * IDLE_W)


def test_prompts_and_decodes_add_to_idle_for_as_long_as_they_take(profile: Profile) -> None:
    draw = profile.power.combined

    assert step_watts(draw, StepTime(1.0, 1.0, 0.0), 0) == pytest.approx(600)
    assert step_watts(draw, StepTime(1.0, 0.0, 1.0), 1) == pytest.approx(300)
    assert step_watts(draw, StepTime(1.0, 0.0, 1.0), 6) == pytest.approx(350)
    assert step_watts(draw, StepTime(1.0, 0.25, 0.75), 1) == pytest.approx(100 + 0.25 * 500 + 0.75 * 200)
    # waiting for KV to come or go is neither
    assert step_watts(draw, StepTime(2.0, 1.0, 0.0), 0) == pytest.approx(100 + 250)


def test_roles_draw_differently(profile: Profile) -> None:
    power = msgspec.structs.replace(profile.power, prefill=Draw(idle_w=90.0, prefill_w=550.0))
    prefill = SimulatedBoard(
        msgspec.structs.replace(profile, power=power), index=0, role=Role.PREFILL, instance="prefill-0", now=0.0
    )
    prefill.step(1.0, StepTime(1.0, 1.0, 0.0), 0)

    assert prefill.read(0.5, 0).sample.power_w == pytest.approx(90)
    assert prefill.read(1.5, 0).sample.power_w == pytest.approx(640)


def test_a_board_may_pass_its_limit_for_a_moment_but_not_for_a_second() -> None:
    meter = EnergyMeter(100.0, 0.0, limit_w=700.0)
    meter.busy(0.0, 0.05, 900.0)
    assert meter.watts(0.01) == pytest.approx(900)

    for number in range(1, 100):
        meter.busy(number * 0.05, 0.05, 900.0)
    assert meter.watts(4.97) == pytest.approx(700, abs=1)
    assert meter.read(5.0)[0] - meter.read(4.0)[0] == pytest.approx(700, rel=0.001)


def test_a_board_that_works_less_than_its_limit_allows_draws_all_that_it_wants() -> None:
    meter = EnergyMeter(100.0, 0.0, limit_w=700.0)
    for number in range(50):
        meter.busy(number * 0.1, 0.05, 900.0)

    assert meter.read(5.0)[0] == pytest.approx(50 * 0.05 * (900 + 100))


@given(SEGMENTS)
def test_no_limit_is_below_idle(segments: list[tuple[float, float, float]]) -> None:
    meter, now = EnergyMeter(IDLE_W, 0.0, limit_w=300.0), 0.0
    for pause, seconds, extra in segments:
        before = meter.read(now)[0]
        meter.busy(now + pause, seconds, IDLE_W + extra)
        now += pause + seconds
        assert meter.read(now)[0] - before >= (pause + seconds) * IDLE_W - 1e-9


def test_an_idle_board(profile: Profile) -> None:
    reading = board(profile).read(105.0, kv_tokens=0)

    sample = reading.sample
    assert (sample.power_w, sample.power_average_w, sample.utilization) == (100.0, 100.0, 0.0)
    assert sample.energy_mj == pytest.approx(500_000)
    assert (sample.sm_clock_mhz, sample.throttle_reasons) == (300, 1)
    assert sample.memory_used_bytes == profile.memory.weights_bytes


def test_a_working_board(profile: Profile) -> None:
    working = board(profile)
    working.step(104.5, StepTime(1.0, 1.0, 0.0), 0)

    sample = working.read(105.0, kv_tokens=1000).sample

    assert sample.power_w == pytest.approx(600)
    assert (sample.sm_clock_mhz, sample.throttle_reasons) == (1500, 0)
    assert sample.power_average_w == pytest.approx((100 + 600) / 2)
    assert sample.utilization == pytest.approx(0.5)
    assert sample.memory_used_bytes == profile.memory.weights_bytes + 1000 * profile.memory.kv_bytes_per_token
    assert sample.temperature_c is not None
    assert sample.temperature_c > 26


def test_the_board_says_that_it_is_simulated_and_whose_it_is(profile: Profile) -> None:
    info = board(profile).info

    assert info.name == "Slow Exact (simulated)"
    assert (info.index, info.role, info.instance, info.power_limit_w) == (3, Role.DECODE, "decode-1", 700.0)
    assert info.uuid == board(profile).info.uuid
    assert info.uuid.startswith("GPU-")
