"""The search for the highest rate: which rates it tries, what it answers, and how sure it is."""

import pytest

from pd_loadgen.series.rate_search import Answer, Goal, Probe, answer, next_rate

GOAL = Goal(attainment=0.9, low=1.0, high=16.0, tolerance=0.05, most=12)


def searched(capacity: float, goal: Goal = GOAL, requests: int = 1000) -> list[Probe]:
    """A server that meets the limits of all requests up to its capacity, and of half of them above it."""
    probes: list[Probe] = []
    while (rate := next_rate(goal, probes)) is not None:
        probes.append(Probe(rate, requests if rate <= capacity else requests // 2, requests))
    return probes


@pytest.mark.parametrize("capacity", [1.0, 3.3, 9.7, 15.9])
def test_a_known_capacity_is_found_within_the_tolerance(capacity: float) -> None:
    probes = searched(capacity)
    found = answer(GOAL, probes)

    assert found.close
    assert found.rate is not None
    assert capacity / 1.05 <= found.rate <= capacity
    assert found.at_least == found.rate
    assert found.at_most is not None
    assert capacity < found.at_most <= found.rate * 1.05
    assert len(probes) <= 12


def test_the_ends_are_tried_first_and_a_bad_low_end_is_the_end() -> None:
    assert [probe.rate for probe in searched(4.0)][:3] == [1.0, 16.0, 8.5]
    assert [probe.rate for probe in searched(0.5)] == [1.0]
    assert answer(GOAL, searched(0.5)) == Answer(None, None, 1.0, close=False)


def test_a_good_high_end_is_an_answer_that_is_not_close() -> None:
    assert answer(GOAL, searched(99.0)) == Answer(16.0, 16.0, None, close=False)


def test_the_search_stops_at_its_maximum_number_of_rates() -> None:
    assert len(searched(9.7, Goal(0.9, 1.0, 16.0, 0.001, 5))) == 5


def test_a_rate_above_a_bad_one_is_not_the_answer() -> None:
    lucky = [Probe(1.0, 100, 100), Probe(16.0, 100, 100), Probe(8.5, 10, 100)]

    assert answer(GOAL, lucky).rate == 1.0


def test_wilsons_interval_is_as_tabled() -> None:
    assert Probe(1.0, 90, 100).interval == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert Probe(1.0, 0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Probe(1.0, 0, 0).interval == (0.0, 1.0)


def test_few_requests_are_not_sure_of_anything() -> None:
    found = answer(GOAL, [Probe(1.0, 10, 10), Probe(16.0, 8, 10)])

    assert (found.rate, found.at_least, found.at_most) == (1.0, None, None)
