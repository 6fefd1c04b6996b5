"""When prefill tells decode that KV is near: not before it is, and never too late without need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector.core.forecast import PARTS, Forecast, milestones


@pytest.mark.parametrize(("layers", "expected"), [(0, []), (1, []), (2, [1]), (3, [1, 2]), (32, [1, 8, 16, 24])])
def test_after_which_layers_it_looks(layers: int, expected: list[int]) -> None:
    found = milestones(layers)
    assert list(found) == expected
    assert [share for share, _ in found.values()] == [count / layers for count in expected]
    assert [following for _, following in found.values()] == [*[count / layers for count in expected[1:]], 1][
        : len(found)
    ]


def foretold(layers: int, each: list[float], lead: float) -> float | None:
    """When it tells, of a step whose layers take so long."""
    forecast, now = Forecast(lead), 0.0
    shares = milestones(layers)
    for count, seconds in enumerate(each, 1):
        now += seconds
        if count in shares and not forecast.told:
            due = forecast.passed(shares[count][0], now, shares[count][1])
            if due is not None:
                return max(now, due)
    return None


@given(st.integers(2, 80), st.floats(1e-4, 1e-1), st.floats(1e-4, 1e-2))
def test_even_layers(layers: int, each: float, lead: float) -> None:
    found, end = foretold(layers, [each] * layers, lead), layers * each
    first = min(count for count in milestones(layers)) * each
    assert found is not None
    if layers == 2:
        assert found == each  # there is nothing to compare with
    elif end - lead < first + each * max(1, layers // PARTS):
        assert found <= first + each * max(2, layers // PARTS + 1)
    else:
        assert found == pytest.approx(end - lead, abs=1e-6)


@given(st.lists(st.floats(1e-4, 1e-2), min_size=2, max_size=80), st.floats(0, 1e-2))
def test_uneven_layers(each: list[float], lead: float) -> None:
    """It tells once, not before the first look, and the end of the layers that are left is not forgotten."""
    found = foretold(len(each), each, lead)
    assert found is not None
    assert found >= each[0]


def test_a_step_that_becomes_slower_is_foretold_by_its_later_layers() -> None:
    each = [0.001] * 16 + [0.002] * 16
    found = foretold(32, each, 0.003)
    assert found is not None
    assert sum(each) - found == pytest.approx(0.003)
