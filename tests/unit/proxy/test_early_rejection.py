"""What passes: answers that are too slow only until engines have other roles, and prompts that are let wait. The router knows where that is so."""

from math import inf

import pytest
from support.costs import COSTS
from support.engines import engine

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Late, Needs, Pair, Route, Solo
from pd_proxy.engines.registry import Instance
from pd_proxy.router import Router
from pd_routing.adaptive import Why
from pd_routing.books import Books
from pd_routing.names import Reject, Routing
from pd_routing.view import Objectives

P2P = tuple(engine(Role.COMBINED, number, connector=Connector.P2P) for number in (1, 2, 3, 4))
UNABLE = tuple(engine(Role.COMBINED, number, connector=Connector.P2P_NCCL) for number in (1, 2, 3, 4))
FIXED = (engine(Role.PREFILL, 5, connector=Connector.P2P), engine(Role.DECODE, 1, connector=Connector.P2P))


@pytest.mark.parametrize(
    ("routing", "engines", "route", "passing"),
    [
        (Routing.ADAPTIVE, P2P, Solo(P2P[0]), True),
        (Routing.ADAPTIVE, P2P, Late(P2P[0]), True),
        (Routing.STATIC, P2P, Solo(P2P[0]), False),
        (Routing.LOCAL_FIRST, P2P, Solo(P2P[0]), False),
        (Routing.LOCAL_FIRST, P2P, Late(P2P[0]), False),
        (Routing.ADAPTIVE, UNABLE, Solo(UNABLE[0]), False),
        (Routing.ADAPTIVE, P2P[:1], Solo(P2P[0]), False),
        (Routing.ADAPTIVE, FIXED, Pair(*FIXED), False),
    ],
)
def test_only_engines_whose_roles_change_get_time_for_it(
    routing: Routing, engines: tuple[Instance, ...], route: Route, passing: bool
) -> None:
    books = Books(COSTS, Objectives(ttft=inf, tpot=10.0))
    router = Router(books, lambda *_: True, routing=routing, reject=Reject.SLO)
    for number in (1, 2, 3, 4):
        for _ in range(100):
            books.sent(0.0, number, 1000, answers=True)

    found = router.consider(route, engines, Needs(), 1000, 0.0, new=False)
    assert found.late
    assert found.passing is passing


@pytest.mark.parametrize("why", Why)
def test_a_late_first_token_passes_only_where_its_prompt_is_let_wait(why: Why) -> None:
    books = Books(COSTS, Objectives(ttft=200.0, tpot=inf))
    router = Router(books, lambda *_: True, routing=Routing.ADAPTIVE, reject=Reject.SLO)
    for _ in range(20):
        books.sent(0.0, 1, 1000, answers=False)

    found = router.consider(Late(P2P[0], why), P2P, Needs(), 1000, 0.0, new=False)
    assert "TTFT_SLO_MS" in found.sentence
    assert found.passing is (why is Why.WAITS)


def test_prompts_that_are_too_long_for_the_objective_are_not_taken_for_overload() -> None:
    books = Books(COSTS, Objectives(ttft=500.0, tpot=inf))
    router = Router(books, lambda *_: True, routing=Routing.STATIC, reject=Reject.SLO)

    for number in range(200):
        now, prompt = 10.0 * number, 500 if number % 2 else 60_000
        books.arrived(1e3 * now, prompt)
        found = router.consider(Solo(P2P[0]), P2P[:1], Needs(), prompt, now, new=True)
        assert found.late is (prompt == 60_000)
        ticket = books.sent(1e3 * now, 1, prompt, answers=True)
        books.computed(1e3 * now + found.ttft, ticket)
        books.ended(1e3 * now + 1000, ticket, 100, 6.0)
