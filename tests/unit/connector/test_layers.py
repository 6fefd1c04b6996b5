"""How far a step has come, and when its last layer has written its KV: never too early, and never where it cannot be known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector.core.orders import Begin, Computed, Load, Order
from pd_connector.engine.layers import Layers

SENDS = Computed("k.x", 0, (1, 2), last=True, early=True)
LATER = Computed("k.y", 0, (3,))
WITH_TOKEN = Computed("k.z", 0, (4,), last=True)
BEGINS = Begin("r", "k.x", "d:1", 2)
NAMES = ("a", "b", "c")


def test_the_last_layer_is_known_once_in_each_step() -> None:
    layers = Layers(NAMES)
    for _ in range(3):
        step: list[Order] = [SENDS]
        assert [layers.wrote(name, step) for name in NAMES] == [False, False, True]
        assert layers.wrote("c", step) is False
        assert layers.end(step) is True
        assert layers.end(step) is False


def test_shares_of_the_layers_at_which_to_look() -> None:
    layers, step = Layers(NAMES), list[Order]([SENDS])
    found = []
    for name in NAMES:
        layers.wrote(name, step)
        found.append(layers.milestone)
    assert found == [(1 / 3, 2 / 3), (2 / 3, 1), None]
    hand_off: list[Order] = [WITH_TOKEN]
    assert [(layers.wrote(name, hand_off), layers.milestone) for name in NAMES] == [(False, one) for one in found]
    nobody: list[Order] = [LATER]
    assert [(layers.wrote(name, nobody), layers.milestone) for name in NAMES] == [(False, None)] * 3


@pytest.mark.parametrize("order", [Load("r", "k.x", (1,), 0), LATER, WITH_TOKEN])
def test_a_step_for_whose_kv_nobody_waits(order: Order) -> None:
    layers, step = Layers(NAMES), [order]
    assert not any(layers.wrote(name, step) for name in NAMES)
    assert layers.end(step) is False


def test_a_step_of_which_a_layer_is_not_told() -> None:
    layers, step, after = Layers(NAMES), list[Order]([SENDS]), list[Order]([SENDS])
    assert not any(layers.wrote(name, step) for name in ("a", "b", "other"))
    assert layers.end(step) is False
    # The next step begins anew, also if the one before never ended.
    assert [layers.wrote(name, after) for name in ("c", "a", "b")] == [False, False, True]


def test_without_names_no_layer_is_the_last() -> None:
    step: list[Order] = [SENDS]
    assert not any(Layers().wrote(name, step) for name in NAMES)


def test_kv_is_not_sent_before_it_is_known_where_it_goes() -> None:
    """Orders of a scheduler in another process come with the step, and vLLM may have them carried out after its layers."""
    layers, step = Layers(NAMES), list[Order]([BEGINS, SENDS])
    assert not any(layers.wrote(name, step) for name in NAMES)
    layers.begin(step)
    assert layers.end(step) is False

    early: list[Order] = [BEGINS, SENDS]
    layers.begin(early)
    assert [layers.wrote(name, early) for name in NAMES] == [False, False, True]


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.lists(st.sampled_from((*NAMES, "other"))), st.booleans())))
def test_any_order_of_layers_and_steps(steps: list[tuple[bool, bool, list[str], bool]]) -> None:
    layers = Layers(NAMES)
    for sends, begun, told, ends in steps:
        step: list[Order] = [BEGINS, SENDS if sends else LATER]
        if begun:
            layers.begin(step)
        found = [layers.wrote(name, step) for name in told]
        whole = next((at for at in range(len(told)) if set(NAMES) <= set(told[: at + 1])), None)
        expected = [sends and begun and at == whole for at in range(len(told))]
        assert found == expected
        if ends:
            assert layers.end(step) is any(expected)
