"""Every page has one state and one owner, after any sequence of operations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector.core.pages import FREE, PageError, Pages

STATES = ("granted", "landed", "loading")


@given(
    count=st.integers(0, 12),
    steps=st.lists(st.tuples(st.sampled_from(("take", "move", "steal")), st.integers(0, 5), st.sampled_from(STATES))),
)
def test_the_page_counts_add_up_after_every_step(count: int, steps: list[tuple[str, int, str]]) -> None:
    pages, held = Pages(count), dict[int, str]()
    for what, amount, state in steps:
        mine = sorted(held)[:amount]
        if what == "take":
            taken = pages.take(amount, state)
            assert taken == sorted(set(range(count)) - set(held))[:amount], "the lowest free ones, and nobody else's"
            held |= dict.fromkeys(taken, state)
        elif what == "move":
            for page in mine:
                pages.move([page], held[page], state if amount % 2 else FREE)
                held[page] = state
            if not amount % 2:
                held = {page: state for page, state in held.items() if page not in mine}
        else:
            for page in {*range(count)} - set(held):
                with pytest.raises(PageError):
                    pages.move([page], state, FREE)

        assert pages.free == count - len(held)
        assert {page: pages.state(page) for page in held} == held
        assert sum(pages.counts().values()) == len(pages) == count


def test_a_page_that_does_not_exist_is_an_error() -> None:
    pages = Pages(2)

    assert pages.state(2) is None
    assert pages.state(-1) is None
    with pytest.raises(PageError, match="page 7 is None, not granted"):
        pages.move([7], "granted", FREE)
