import pytest
from support.monitor import FakeTruth

from pd_contracts.records import GpuSample
from pd_monitor.closure import Closure


def fed(samples: list[GpuSample], window_s: float = 10) -> dict[str, float]:
    closure = Closure(window_s)
    for sample in samples:
        closure.add(sample)
    return closure.ratios


def steady(seconds: int, *, power: float = 100.0, counted: float = 100.0, start: float = 0.0) -> list[GpuSample]:
    return [
        GpuSample(t=start + t, index=0, power_w=power, power_average_w=power, energy_mj=(start + t) * counted * 1e3)
        for t in range(seconds + 1)
    ]


def test_power_and_counter_that_agree_close() -> None:
    assert fed(steady(10)) == pytest.approx({"instant": 0, "average": 0})


def test_the_error_is_the_integrals_share_of_the_counter() -> None:
    assert fed(steady(10, counted=125)) == pytest.approx({"instant": -0.2, "average": -0.2})


def test_before_a_whole_window_nothing_is_said() -> None:
    assert fed(steady(9)) == {}


@pytest.mark.parametrize(
    "hole",
    [
        [],
        [GpuSample(t=6.0, index=0, errors={"gpu": "lost"})],
        [GpuSample(t=6.0, index=0, power_w=100, energy_mj=1.0)],
    ],
)
def test_a_gap_a_failed_reading_and_a_counter_that_went_back_start_again(hole: list[GpuSample]) -> None:
    assert fed([*steady(5), *hole, *steady(8, start=20)]) == {}


def test_a_kind_of_power_that_was_missing_once_is_not_judged() -> None:
    samples = steady(10)
    samples[4] = GpuSample(t=4.0, index=0, power_average_w=100.0, energy_mj=400e3)

    assert fed(samples) == pytest.approx({"average": 0})


def test_the_average_closes_at_one_sample_a_second_where_the_instant_power_does_not() -> None:
    """Bursts of 75 ms, as decode steps are: the reason why alerts look at the average."""
    truth = FakeTruth(0, half_period_s=0.075)
    times = [100 + 1.01 * number for number in range(70)]
    samples = [
        GpuSample(
            t=t,
            index=0,
            power_w=truth.mean_w(t, 0.025),
            power_average_w=truth.mean_w(t, 1.0),
            energy_mj=truth.joules(0, t) * 1e3,
        )
        for t in times
    ]

    ratios = fed(samples, window_s=60)

    assert abs(ratios["average"]) < 0.03
    assert abs(ratios["instant"]) > abs(ratios["average"])
