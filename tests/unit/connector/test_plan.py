"""What prefill's scheduler tells its workers: whole blocks as they are computed, each once, and which blocks the engine must keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector.core.orders import Begin, Computed, Ended, Forget, Order, Preempted
from pd_connector.core.plan import Finish, Plan

BLOCK = 16


def blocks_told(orders: list[Order]) -> list[tuple[int, tuple[int, ...]]]:
    return [(order.first, order.blocks) for order in orders if isinstance(order, Computed)]


@pytest.mark.parametrize(
    ("tokens", "told"),
    [(1, [(0, (5,))]), (15, [(0, (5,))]), (16, [(0, (5,))]), (17, [(0, (5, 6))]), (32, [(0, (5, 6))])],
)
def test_a_prompt_in_one_step_sends_all_its_blocks(tokens: int, told: list[tuple[int, tuple[int, ...]]]) -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    total = -(-tokens // BLOCK)

    assert plan.add("r", "k", "d:1", tokens) == [Begin("r", "k", "d:1", total)]
    assert blocks_told(plan.scheduled("r", [5, 6][:total], tokens, anew=True)) == told


def test_chunks_send_whole_blocks_and_the_last_one_the_rest() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", None, 50)

    assert blocks_told(plan.scheduled("r", [0, 1], 20, anew=True)) == [(0, (0,))]
    assert blocks_told(plan.scheduled("r", [2], 40, anew=False)) == [(1, (1,))]
    assert blocks_told(plan.scheduled("r", [3], 49, anew=False)) == [(2, (2,))]
    assert blocks_told(plan.scheduled("r", [], 50, anew=False)) == [(3, (3,))]
    assert plan.scheduled("r", [4], 51, anew=False) == []  # it goes on decoding; this KV belongs to no request


def test_only_the_last_kv_of_a_prompt_is_wanted_before_its_step_ends() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", "d:1", 50, early=True)
    plan.add("other", "l", "d:1", 16)

    assert plan.scheduled("r", [0, 1], 32, anew=True) == [Computed("k", 0, (0, 1), early=False)]
    assert plan.scheduled("r", [2, 3], 50, anew=False) == [Computed("k", 2, (2, 3), last=True, early=True)]
    assert plan.scheduled("other", [4], 16, anew=True) == [Computed("l", 0, (4,), last=True, early=False)]


def test_a_cached_beginning_is_sent_too() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", None, 48)

    assert blocks_told(plan.scheduled("r", [9, 8, 7], 48, anew=True)) == [(0, (9, 8, 7))]


def test_several_answers_to_one_prompt_send_its_kv_once_and_all_name_it() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    assert plan.add("0_r", "k", "d:1", 40) == [Begin("0_r", "k", "d:1", 3)]
    assert plan.add("1_r", "k", "d:1", 40) == []

    assert blocks_told(plan.scheduled("0_r", [0, 1, 2], 40, anew=True)) == [(0, (0, 1, 2))]
    assert plan.scheduled("1_r", [3, 4, 5], 40, anew=True) == []
    first, second = (plan.finished(name, 7, settled=True) for name in ("0_r", "1_r"))

    assert (first, second) == (
        Finish([Ended("0_r", "k", 7, held=False)], False, 3),
        Finish([], False, 3),
    )
    assert (len(plan), plan.finished("1_r", 7, settled=True)) == (0, None)


def test_an_aborted_request_names_no_kv() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("0_r", "k", "d:1", 40)
    plan.add("1_r", "k", "d:1", 40)

    assert plan.finished("1_r", None, settled=True) is None


def test_after_preemption_everything_is_told_again() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", None, 40)
    plan.scheduled("r", [0, 1], 32, anew=True)

    assert plan.preempted("r") == [Preempted("k")]
    assert plan.preempted("r") == []
    assert blocks_told(plan.scheduled("r", [4, 5, 6], 40, anew=True)) == [(0, (4, 5, 6))]


def test_a_request_that_begins_anew_unannounced_counts_as_preempted() -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", None, 40)
    plan.scheduled("r", [0, 1], 32, anew=True)

    assert plan.scheduled("r", [3], 16, anew=True) == [Preempted("k"), Computed("k", 0, (3,))]


@pytest.mark.parametrize("settled", [True, False])
def test_blocks_are_held_until_they_are_copied(*, settled: bool) -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", "d:1", 20)
    assert plan.computes("k")
    plan.scheduled("r", [0, 1], 20, anew=True)

    finish = plan.finished("r", 42, settled=settled)

    assert finish is not None
    assert finish.hold is not settled
    assert finish.orders == [Ended("r", "k", 42, held=not settled)]
    assert plan.keeps("k") is not settled
    assert not plan.computes("k")
    plan.released({"r", "somebody else's"})
    assert len(plan) == 0


@pytest.mark.parametrize("token", [None, 42])
def test_a_prompt_that_is_not_whole_is_not_kept(token: int | None) -> None:
    plan = Plan(BLOCK, keep_blocks=10)
    plan.add("r", "k", None, 40)
    plan.scheduled("r", [0], 16, anew=True)

    finish = plan.finished("r", token, settled=False)

    assert finish is not None
    assert (finish.hold, finish.orders) == (False, [Ended("r", "k", None)])
    assert len(plan) == 0


def test_the_oldest_kv_that_nobody_asked_for_makes_room() -> None:
    plan = Plan(BLOCK, keep_blocks=5)
    said: list[Order] = []
    for name, to in (("a", None), ("b", "d:1"), ("c", None), ("d", None)):
        plan.add(name, f"key-{name}", to, 2 * BLOCK)
        plan.scheduled(name, [0, 1], 2 * BLOCK, anew=True)
        finish = plan.finished(name, 1, settled=False)
        assert finish is not None
        said += [order for order in finish.orders if isinstance(order, Forget)]

    assert [order.key for order in said if isinstance(order, Forget)] == ["key-a"]  # b is on its way to somebody


def test_requests_that_are_none_of_ours_cost_nothing() -> None:
    plan = Plan(BLOCK, keep_blocks=5)

    assert plan.scheduled("x", [1], 16, anew=True) == []
    assert plan.preempted("x") == []
    assert plan.finished("x", 1, settled=False) is None


@given(tokens=st.integers(1, 200), data=st.data())
def test_whatever_the_chunks_every_block_is_told_once_and_only_when_it_is_computed(
    tokens: int, data: st.DataObject
) -> None:
    plan = Plan(BLOCK, keep_blocks=0)
    plan.add("r", "k", None, tokens)
    blocks = list(range(100, 100 + -(-tokens // BLOCK)))
    computed, given_blocks, told = 0, 0, 0
    while computed < tokens:
        anew = computed == 0
        computed += data.draw(st.integers(1, tokens - computed))
        needed = -(-computed // BLOCK)
        orders = plan.scheduled("r", blocks[given_blocks:needed], computed, anew=anew)
        given_blocks = needed
        for first, found in blocks_told(orders):
            assert first == told
            assert list(found) == blocks[told : told + len(found)]
            told += len(found)
        assert told == (len(blocks) if computed == tokens else computed // BLOCK)
    assert told == len(blocks)
