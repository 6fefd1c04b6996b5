"""Rolling restarts under load: with a drain nothing is lost, without one only requests that no engine can save."""

import pytest
from support.faults import PAGE
from support.rolling import HEAD, RESTARTS, run


@pytest.mark.parametrize("name", RESTARTS)
async def test_a_rolling_restart_loses_no_request_that_could_be_saved(name: str) -> None:
    names, drained = RESTARTS[name]
    result = await run(names, drained=drained)
    tally = result.tally
    print(result.row(name))  # noqa: T201  how many there were is part of the answer
    assert (tally.stuck, tally.broken, tally.wrong) == ([], [], [])
    assert tally.outcomes["answered"] > 20, "there was load"
    assert result.lost == 0
    assert result.kv_left == 0
    if drained or not any(name.startswith("decode") for name in names):
        assert result.told == 0, "only a decode that ends without a word takes streams with it that had begun"
    assert (result.turned_away > 0) <= (not names)


def test_the_page_has_a_row_for_each_kind_of_restart() -> None:
    rows = PAGE.read_text().partition(HEAD)[2].splitlines()
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in RESTARTS]
