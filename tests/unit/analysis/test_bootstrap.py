"""Differences are reported only if they exceed the noise between repeats."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.analysis import constant, failed, group, manifest, on_boards, power_log, request, run, workload

from pd_analysis.doubts.doubt import Level
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers import bootstrap
from pd_analysis.numbers.bootstrap import design_effect, interval, of_percentile
from pd_analysis.numbers.comparison import compared
from pd_analysis.numbers.evaluation import evaluate, grouped
from pd_analysis.numbers.measures import GOODPUT, JOULES, TTFT_P99
from pd_analysis.records.run import Run
from pd_analysis.tables.measurement_checks import repeats
from pd_contracts.names import Role, Topology


def noisy(topology: Topology = Topology.COMBINED, *, count: int = 400, shift: float = 1.0, seed: int = 0) -> Run:
    values = np.random.default_rng(seed).gamma(4.0, 0.025 * shift, count)
    records = [request(index, index / 40, ttft=float(value)) for index, value in enumerate(values)]
    about = manifest(topology, workload=workload(seed=seed), run_id=f"{topology}-{seed}", schedule_hash=f"s{seed}")
    role = Role.COMBINED if topology is Topology.COMBINED else Role.DECODE
    power = power_log({0: (role, constant(300.0 + seed))})
    return run(records, on_boards(about, power), power)


def test_the_interval_of_a_median_covers_what_a_bootstrap_of_requests_covers() -> None:
    result = group(noisy()).baseline
    values = result.requests.ordered("ttft")
    generator = np.random.default_rng(1)
    resampled = np.percentile(generator.choice(values, (2000, values.size)), 50, axis=1)

    draws = of_percentile("ttft", 50)(result)

    assert draws is not None
    assert interval(draws) == pytest.approx(interval(resampled), rel=0.02)


@pytest.mark.parametrize("place", ["results", "another/place/of/them"])
def test_draws_are_the_same_every_time_and_wherever_the_records_lie(place: str) -> None:
    run_ = noisy()
    moved = replace(run_, path=Path(place) / run_.path.name)
    one, two = (of_percentile("ttft", 99)(group(each).baseline) for each in (run_, moved))

    assert one is not None
    assert two is not None
    assert np.array_equal(one, two)


def test_requests_that_wait_together_count_as_fewer() -> None:
    slow_in_a_row = np.arange(400) >= 200
    slow_here_and_there = np.arange(400) % 2 == 0

    assert design_effect(slow_in_a_row) > 10
    assert design_effect(slow_here_and_there) == 1
    assert design_effect(np.zeros(400, dtype=bool)) == 1
    assert design_effect(slow_in_a_row[195:205]) == 1  # too few to tell


def test_a_large_ratio_of_few_noisy_requests_is_not_called() -> None:
    pair = group(noisy(count=30), noisy(Topology.DISAGG, count=30, shift=1.2, seed=0))
    many = group(noisy(count=4000), noisy(Topology.DISAGG, count=4000, shift=1.2, seed=0))

    few_found, many_found = (compared(TTFT_P99, *each.results) for each in (pair, many))

    assert few_found.interval is not None
    assert few_found.interval[0] < 1 < few_found.interval[1]
    assert few_found.winner is None
    assert many_found.winner is many.baseline


def test_the_share_that_meets_the_limits_has_the_binomials_width() -> None:
    # 100 of 400 fail, evenly: the standard error of a share of 0.75 is sqrt(0.75 × 0.25 / 400) = 0.0217
    records = [failed(index, index / 40) if index % 4 == 0 else request(index, index / 40) for index in range(400)]
    draws = GOODPUT.draws(group(run(records)).baseline)

    assert draws is not None
    rate = 400 / 10 / 2  # requests, seconds, GPUs
    assert np.std(draws) == pytest.approx(0.0217 * rate, rel=0.1)
    assert np.mean(draws) == pytest.approx(0.75 * rate, rel=0.01)


def test_other_seeds_are_pooled_and_the_same_seed_twice_is_not() -> None:
    (seeds,) = grouped(evaluate([noisy(seed=0), noisy(seed=1), noisy(seed=2), noisy(Topology.DISAGG)]))
    (same,) = grouped(evaluate([noisy(seed=0), noisy(seed=0)]))

    assert [(result.name, len(result.runs), result.metrics.requests) for result in seeds.results] == [
        ("combined", 3, 1200),
        ("disagg", 1, 400),
    ]
    assert len(same.results) == 2


def test_pooled_energy_and_rates_are_over_all_windows() -> None:
    (both,) = grouped(evaluate([noisy(seed=0), noisy(seed=1)]))
    result = both.baseline

    assert result.energy is not None
    assert result.energy.total_j == pytest.approx(300 * 10 + 301 * 10)
    assert result.metrics.window_s == 20
    assert result.metrics.request_rate == pytest.approx(800 / 20)


def test_only_repeats_tell_how_far_joules_move() -> None:
    (both,) = grouped(evaluate([noisy(seed=0), noisy(seed=1)]))

    assert JOULES.draws(group(noisy()).baseline) is None
    draws = JOULES.draws(both.baseline)
    assert draws is not None
    assert len(draws) == bootstrap.DRAWS
    assert interval(draws) == pytest.approx((300 * 10 / 1200, 301 * 10 / 1200))


def test_repeats_are_shown_one_by_one() -> None:
    (both,) = grouped(evaluate([noisy(seed=0), noisy(seed=1)]))
    table = repeats(both)

    assert table is not None
    assert [row[1].text for row in table.rows] == ["0", "1"]
    assert repeats(group(noisy())) is None


def test_repeats_of_the_same_seeds_on_both_sides_are_one_schedule() -> None:
    (even,) = grouped(evaluate([noisy(topology, seed=seed) for topology in Topology for seed in (0, 1)]))
    (odd,) = grouped(evaluate([noisy(seed=0), noisy(seed=1), noisy(Topology.DISAGG, seed=0)]))

    assert not [doubt for doubt in doubts(even) if "different schedules" in doubt.sentence]
    assert not [doubt for doubt in doubts(odd) if "different schedules" in doubt.sentence]
    assert [doubt.level for doubt in doubts(odd) if "more seeds" in doubt.sentence] == [Level.CARE]
