"""Requests routed as they come, by the proxy's own rules."""

import numpy as np
import pytest
from support.planning import H200, poisson

from pd_contracts.names import Connector
from pd_planner.des.deployment import simulate
from pd_planner.des.routed import Routed, adaptive
from pd_planner.profile.numbers import changed
from pd_routing.view import Objectives
from pd_simulator.steps.engines import Engines, Order

OBJECTIVES = Objectives(300.0, 10.0)
ROOM = H200.memory.kv_tokens


def served(rate: float, engines: int = 2, *, order: Order = Order.HAND_OFF, output: int = 64) -> Routed:
    load = poisson(rate, 10.0, 2048, output)
    return adaptive(H200, Engines(0, engines, Connector.P2P, ROOM, order=order), load, OBJECTIVES)


def test_at_low_load_engines_are_plain_ones() -> None:
    load = poisson(1.0, 30.0, 512, 16)
    alone = simulate(H200, Engines(0, 1, None, ROOM), load)

    found = adaptive(H200, Engines(0, 1, Connector.P2P, ROOM, order=Order.HAND_OFF), load, OBJECTIVES)

    assert found.handed_over == 0
    assert found.outcome.first == pytest.approx(alone.first)
    assert found.outcome.last == pytest.approx(alone.last)
    assert found.outcome.busy == pytest.approx(alone.busy)


@pytest.mark.parametrize("order", [Order.AFTER, Order.HAND_OFF])
@pytest.mark.parametrize("output", [1, 2, 64])
def test_under_prompts_answers_move_and_none_is_lost(order: Order, output: int) -> None:
    found = served(30.0, order=order, output=output)
    outcome = found.outcome

    assert (outcome.load.at < outcome.first).all()
    assert (outcome.first <= outcome.last).all()
    if output == 64:
        assert found.handed_over > 0.5 * len(outcome.load)


def test_prefills_token_comes_before_decode_has_begun() -> None:
    first = {order: np.median(served(18.0, order=order).outcome.ttft_ms) for order in (Order.AFTER, Order.HAND_OFF)}

    assert first[Order.HAND_OFF] < first[Order.AFTER] - 5


def test_the_proxy_believes_its_profile_and_not_the_engines() -> None:
    load = poisson(18.0, 10.0, 2048, 64)
    engines = Engines(0, 2, Connector.P2P, ROOM, order=Order.HAND_OFF)
    slower = changed(H200, {"prefill.per_token_ms": 3 * H200.prefill.per_token_ms})

    knowing, wrong = (adaptive(H200, engines, load, OBJECTIVES, known=known) for known in (H200, slower))

    assert wrong.handed_over != knowing.handed_over
