"""Arrivals: their statistics, their determinism, and how workers share them."""

import math
import statistics
from itertools import pairwise

import pytest

from pd_loadgen.workload.schedule import Arrival, arrivals, shard


def gaps(offsets: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip([0.0, *offsets], offsets, strict=False)]


def variation(offsets: list[float]) -> float:
    return statistics.pstdev(gaps(offsets)) / statistics.fmean(gaps(offsets))


def test_poisson_has_the_rate_and_the_spread_of_a_poisson_process() -> None:
    offsets = arrivals(rate=10, duration=1000, seed=1, arrival=Arrival.POISSON)

    # 10,000 expected arrivals: standard deviation 100 of the count, 0.01 of the gaps' coefficient of variation
    assert 9_700 < len(offsets) < 10_300
    assert variation(offsets) == pytest.approx(1.0, abs=0.04)
    counts = [sum(second <= offset < second + 1 for offset in offsets[:2000]) for second in range(150)]
    assert statistics.pvariance(counts) / statistics.fmean(counts) == pytest.approx(1.0, abs=0.4)


def test_offsets_are_sorted_and_inside_the_duration() -> None:
    for arrival in set(Arrival) - {Arrival.CLOSED, Arrival.REPLAY}:
        offsets = arrivals(
            rate=7, duration=30, seed=2, arrival=arrival, burstiness=2.0 if arrival is Arrival.GAMMA else 1.0
        )
        assert offsets == sorted(offsets)
        assert 0 <= offsets[0] <= offsets[-1] < 30


def test_a_seed_decides_the_schedule() -> None:
    first = arrivals(rate=5, duration=20, seed=7, arrival=Arrival.POISSON)

    assert first == arrivals(rate=5, duration=20, seed=7, arrival=Arrival.POISSON)
    assert first != arrivals(rate=5, duration=20, seed=8, arrival=Arrival.POISSON)
    # fixed for good: a changed algorithm would make old and new runs incomparable without anybody noticing
    assert [round(offset, 6) for offset in first[:3]] == [0.035445, 0.566912, 0.71095]


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    short = arrivals(rate=5, duration=10, seed=1, arrival=Arrival.POISSON)

    assert arrivals(rate=5, duration=20, seed=1, arrival=Arrival.POISSON)[: len(short)] == short


def test_poisson_counts_are_not_rescaled() -> None:
    counts = {len(arrivals(rate=10, duration=10, seed=seed, arrival=Arrival.POISSON)) for seed in range(30)}

    assert len(counts) > 5


def test_constant_arrivals_are_even_and_start_at_once() -> None:
    assert arrivals(rate=4, duration=1, seed=0, arrival=Arrival.CONSTANT) == [0, 0.25, 0.5, 0.75]
    assert arrivals(rate=3, duration=1.0, seed=0, arrival=Arrival.CONSTANT) == pytest.approx([0, 1 / 3, 2 / 3])


@pytest.mark.parametrize(("burstiness", "expected"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5), (100.0, 0.1)])
def test_burstiness_is_the_shape_of_gamma_gaps(burstiness: float, expected: float) -> None:
    offsets = arrivals(rate=20, duration=500, seed=5, arrival=Arrival.GAMMA, burstiness=burstiness)

    assert len(offsets) == pytest.approx(10_000, rel=0.08)
    assert variation(offsets) == pytest.approx(expected, rel=0.1)  # 1 / sqrt(shape)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_together_are_the_schedule_each_item_once(count: int) -> None:
    items = list(range(20))
    parts = [list(shard(items, index, count)) for index in range(count)]

    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_that_does_not_exist_is_refused(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="no worker"):
        shard([1, 2, 3], index, count)


def in_parts(offsets: list[float], parts: int, duration: float) -> list[int]:
    return [sum(part <= offset * parts / duration < part + 1 for offset in offsets) for part in range(parts)]


def test_a_ramp_grows_in_a_line_from_its_start_to_its_rate() -> None:
    offsets = arrivals(rate=40, duration=400, seed=1, arrival=Arrival.RAMP, start_rate=20)

    # 30 a second on average; each fifth of 80 s has a rate of 22, 26, 30, 34, 38, with a standard deviation of about 50
    assert in_parts(offsets, 5, 400) == [pytest.approx(80 * rate, abs=200) for rate in (22, 26, 30, 34, 38)]


def test_a_ramp_may_fall() -> None:
    offsets = arrivals(rate=5, duration=400, seed=1, arrival=Arrival.RAMP, start_rate=25)

    assert in_parts(offsets, 2, 400) == [pytest.approx(4000, abs=250), pytest.approx(2000, abs=180)]
    assert offsets == sorted(offsets)
    assert offsets[-1] < 400


def test_a_ramp_without_a_slope_is_the_poisson_process_of_the_rate() -> None:
    ramp = arrivals(rate=5, duration=20, seed=7, arrival=Arrival.RAMP, start_rate=5)

    assert ramp == pytest.approx(arrivals(rate=5, duration=20, seed=7, arrival=Arrival.POISSON))


def test_steps_have_equal_lengths_and_rates_from_the_start_to_the_end() -> None:
    offsets = arrivals(rate=40, duration=400, seed=1, arrival=Arrival.STEP, start_rate=10, steps=4)

    assert in_parts(offsets, 4, 400) == [pytest.approx(100 * rate, abs=250) for rate in (10, 20, 30, 40)]


def test_a_first_step_of_nothing_is_silent() -> None:
    offsets = arrivals(rate=40, duration=40, seed=1, arrival=Arrival.STEP, steps=2)

    assert in_parts(offsets, 2, 40) == [0, len(offsets)]


@pytest.mark.parametrize("arrival", [Arrival.CLOSED, Arrival.REPLAY])
def test_what_has_no_schedule_of_a_rate_is_refused(arrival: Arrival) -> None:
    with pytest.raises(ValueError, match="no schedule"):
        arrivals(rate=1, duration=1, seed=0, arrival=arrival)


@pytest.mark.parametrize("arrival", [Arrival.POISSON, Arrival.GAMMA, Arrival.CONSTANT])
def test_without_a_duration_as_many_are_drawn_as_are_wanted(arrival: Arrival) -> None:
    bounded = arrivals(rate=5, duration=100, seed=3, arrival=arrival, burstiness=0.7)
    endless = arrivals(rate=5, duration=math.inf, seed=3, arrival=arrival, burstiness=0.7, most=40)

    assert endless == bounded[:40]


def test_an_infinite_burstiness_has_equal_gaps() -> None:
    offsets = arrivals(rate=4, duration=10, seed=3, arrival=Arrival.GAMMA, burstiness=math.inf)

    assert {later - earlier for earlier, later in pairwise(offsets)} == {0.25}


@pytest.mark.parametrize(
    ("arrival", "rate", "duration", "most"),
    [
        (Arrival.POISSON, math.inf, 30, 40),
        (Arrival.CONSTANT, math.inf, 30, None),
        (Arrival.POISSON, 2, math.inf, None),
        (Arrival.RAMP, 2, math.inf, 40),
        (Arrival.STEP, math.inf, 30, 40),
    ],
)
def test_what_has_no_end_is_no_schedule(arrival: Arrival, rate: float, duration: float, most: int | None) -> None:
    with pytest.raises(ValueError, match="do not make a schedule"):
        arrivals(rate=rate, duration=duration, seed=1, arrival=arrival, most=most)
