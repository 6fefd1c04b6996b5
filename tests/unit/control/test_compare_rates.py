"""The search for rates, with an artificial deployment that carries every rate below its capacity."""

from collections.abc import Collection, Iterable

import pytest

from pd_control.compare.rates import Outcome, next_rate


def searched(
    capacity: float, others: Collection[float] = (), *, start: float = 1.0, late_above: float = 1e9, stop: int = 60
) -> list[float]:
    """The rates tried on a deployment that meets the limits up to `capacity`."""
    done: dict[float, Outcome] = {}
    for _ in range(stop):
        rate = next_rate(done, others, start=start, attainment=0.9)
        if rate is None:
            return list(done)
        assert rate not in done
        done[rate] = Outcome(attainment=0.97 if rate <= capacity else 0.4, client_in_time=rate <= late_above)
    pytest.fail(f"the search did not end: {done}")


def around(rates: Iterable[float], capacity: float) -> int:
    return sum(capacity / 2 <= rate <= capacity * 2 for rate in rates)


@pytest.mark.parametrize("capacity", [0.07, 0.3, 1.0, 5.0, 11.6, 44.0, 1000.0])
def test_the_knee_is_found_and_surrounded(capacity: float) -> None:
    rates = searched(capacity)

    below, above = [rate for rate in rates if rate <= capacity], [rate for rate in rates if rate > capacity]
    assert max(below) * 2**0.26 > min(above) > max(below)
    assert around(rates, capacity) >= 4
    assert len(rates) <= 16


def test_rates_are_doubled_until_one_is_not_carried() -> None:
    assert searched(11)[:5] == [1, 2, 4, 8, 16]


def test_a_deployment_gets_the_rates_of_those_before_it_as_far_as_its_limits_hold() -> None:
    first = searched(11)
    second = searched(5, first)

    shared = {rate for rate in first if rate <= 8}
    assert shared <= set(second)
    assert max(second) == 8


def test_a_better_deployment_goes_further_than_those_before_it() -> None:
    assert max(searched(40, searched(11))) == 64


def test_a_late_client_ends_the_doubling() -> None:
    assert max(searched(1000, late_above=10)) == 16


@pytest.mark.parametrize("capacity", [0.0, 1e9])
def test_the_search_ends_where_nothing_or_everything_is_carried(capacity: float) -> None:
    assert len(searched(capacity)) <= 13
