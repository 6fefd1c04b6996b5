"""Which engines serve a request."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Needs, Pair, Solo, choose, is_ready
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import NoInstanceError, NotDisaggregableError, UnknownModelError


def engine(role: Role, number: int = 0, connector: Connector | None = Connector.P2P_NCCL, **fields: Any) -> Instance:
    defaults: dict[str, Any] = {"models": ("m",), "state": State.READY, "incarnation": number}
    return Instance(
        name=f"{role.value}-{number}",
        role=role,
        http_address=f"h{number}:1",
        zmq_address=f"z{number}:1",
        connector=None if role is Role.COMBINED else connector,
        **defaults | fields,
    )


def several(role: Role, count: int) -> list[Instance]:
    return [engine(role, number) for number in range(count)]


PREFILL, DECODE, COMBINED = engine(Role.PREFILL), engine(Role.DECODE), engine(Role.COMBINED)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_round_robin_loads_both_sides_evenly_and_meets_every_pair(x: int, y: int, start: int) -> None:
    engines = several(Role.PREFILL, x) + several(Role.DECODE, y)
    rounds = x * y
    routes = [choose(engines, Needs(), start * rounds + turn) for turn in range(rounds)]
    pairs = [(r.prefill.name, r.decode.name) for r in routes if isinstance(r, Pair)]
    assert len(set(pairs)) == x * y
    assert set(Counter(prefill for prefill, _ in pairs).values()) == {y}
    assert set(Counter(decode for _, decode in pairs).values()) == {x}


def test_combined_engines_take_turns_too() -> None:
    engines = several(Role.COMBINED, 3)
    routes = [choose(engines, Needs(), turn) for turn in range(6)]
    assert [r.engine.name for r in routes if isinstance(r, Solo)] == ["combined-0", "combined-1", "combined-2"] * 2


def test_a_pair_comes_before_a_combined_engine() -> None:
    assert isinstance(choose([COMBINED, PREFILL, DECODE], Needs(), 0), Pair)
    assert isinstance(choose([COMBINED, PREFILL], Needs(), 0), Solo)


@pytest.mark.parametrize("state", [State.JOINING, State.SUSPECT, State.LOST])
def test_only_ready_instances_serve(state: State) -> None:
    engines = [PREFILL, engine(Role.DECODE, state=state)]
    assert not is_ready(engines)
    with pytest.raises(NoInstanceError, match="no decode engine is ready"):
        choose(engines, Needs("m"), 0)


def test_partners_share_connector_and_model() -> None:
    nixl = engine(Role.DECODE, 1, Connector.NIXL)
    other = engine(Role.DECODE, 2, models=("other",))
    assert not is_ready([PREFILL, nixl, other])
    with pytest.raises(NoInstanceError, match="same connector and model"):
        choose([PREFILL, nixl, other], Needs(), 0)
    for turn in range(3):
        route = choose([PREFILL, nixl, other, DECODE], Needs(), turn)
        assert isinstance(route, Pair)
        assert route.decode is DECODE


def test_a_request_for_a_model_meets_only_engines_that_serve_it() -> None:
    both = engine(Role.PREFILL, 1, models=("m", "n"))
    n_decode = engine(Role.DECODE, 1, models=("n",))
    route = choose([PREFILL, both, DECODE, n_decode], Needs("n"), 0)
    assert route == Pair(both, n_decode)


def test_an_unknown_model_is_not_found_but_one_of_a_suspect_engine_is_only_away() -> None:
    with pytest.raises(UnknownModelError):
        choose([COMBINED], Needs("other"), 0)
    with pytest.raises(NoInstanceError):
        choose([COMBINED, engine(Role.COMBINED, 1, models=("other",), state=State.SUSPECT)], Needs("other"), 0)


def test_without_any_engine_no_model_is_called_unknown() -> None:
    with pytest.raises(NoInstanceError):
        choose([], Needs("m"), 0)


def test_what_needs_a_combined_engine_gets_one_or_a_sentence() -> None:
    needs = Needs(combined_only="`echo` cannot")
    assert choose([PREFILL, DECODE, COMBINED], needs, 0) == Solo(COMBINED)
    with pytest.raises(NotDisaggregableError, match="`echo` cannot, and no combined engine is ready"):
        choose([PREFILL, DECODE], needs, 0)
    with pytest.raises(NoInstanceError):
        choose([PREFILL], needs, 0)


def test_nixl_takes_one_sequence_and_other_connectors_take_more() -> None:
    nixl = [engine(role, 1, Connector.NIXL) for role in (Role.PREFILL, Role.DECODE)]
    assert choose([*nixl, PREFILL, DECODE], Needs(sequences=2), 0) == Pair(PREFILL, DECODE)
    with pytest.raises(NotDisaggregableError, match="NixlConnector"):
        choose(nixl, Needs(sequences=2), 0)
    assert choose(nixl, Needs(sequences=1), 0) == Pair(nixl[0], nixl[1])
