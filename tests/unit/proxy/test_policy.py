"""The load-balancing policies."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_proxy.engines.pairing import Needs, Pair, Rules, Solo, choose, trust_all
from pd_proxy.engines.policy import AFFINITY_SLACK, Policy, pick
from pd_proxy.engines.registry import Instance, State


def engines(count: int, role: Role = Role.PREFILL) -> list[Instance]:
    return [
        Instance(
            name=f"{role.value}-{number}",
            role=role,
            http_address=f"h{number}:1",
            zmq_address=f"z{number}:1",
            connector=None if role is Role.COMBINED else Connector.P2P_NCCL,
            incarnation=number,
            state=State.READY,
            models=("m",),
        )
        for number in range(count)
    ]


def name_of(policy: Policy, loads: list[int], turn: int, prefix: bytes = b"") -> str:
    return pick(policy, engines(len(loads)), turn, lambda i: loads[i.incarnation], prefix).name


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_least_loaded_takes_a_least_loaded_one(loads: list[int], turn: int) -> None:
    chosen = pick(Policy.LEAST_LOADED, engines(len(loads)), turn, lambda i: loads[i.incarnation])
    assert loads[chosen.incarnation] == min(loads)


@pytest.mark.parametrize("policy", [Policy.LEAST_LOADED, Policy.POWER_OF_TWO, Policy.ROUND_ROBIN])
def test_equals_share_the_work(policy: Policy) -> None:
    counts = Counter(name_of(policy, [0] * 4, turn) for turn in range(4000))
    assert all(count == pytest.approx(1000, rel=0.15) for count in counts.values())
    assert len(counts) == 4


@given(st.integers(0, 100_000))
def test_power_of_two_never_takes_the_most_loaded_of_all(turn: int) -> None:
    assert name_of(Policy.POWER_OF_TWO, [1, 9, 2], turn) != "prefill-1"


@given(st.binary(min_size=1), st.integers(0, 1000), st.integers(0, 1000))
def test_a_prefix_stays_where_it_is_whoever_else_leaves(prefix: bytes, turn: int, other: int) -> None:
    five = engines(5)
    home = pick(Policy.PREFIX_AFFINITY, five, turn, lambda _: 0, prefix)
    left = [engine for engine in five if engine is home or engine.incarnation != other % 5]
    assert pick(Policy.PREFIX_AFFINITY, left, other, lambda _: 0, prefix) is home


def test_prefixes_are_spread_and_an_overloaded_home_is_spared() -> None:
    homes = Counter(name_of(Policy.PREFIX_AFFINITY, [0, 0, 0], 0, str(n).encode()) for n in range(300))
    assert min(homes.values()) > 50
    home = pick(Policy.PREFIX_AFFINITY, engines(3), 0, lambda _: 0, b"x")
    load = {home.incarnation: AFFINITY_SLACK}
    assert pick(Policy.PREFIX_AFFINITY, engines(3), 0, lambda i: load.get(i.incarnation, 0), b"x") == home
    load[home.incarnation] += 1
    assert pick(Policy.PREFIX_AFFINITY, engines(3), 0, lambda i: load.get(i.incarnation, 0), b"x") != home


@pytest.mark.parametrize("policy", list(Policy))
def test_pairs_and_combined_engines_follow_the_policy(policy: Policy) -> None:
    rules = Rules(policy, trust_all, lambda i: 5 if i.incarnation == 0 else 0)
    some = engines(2) + engines(2, Role.DECODE)
    routes = [choose(some, Needs(prefix=b"x"), turn, rules) for turn in range(20)]
    decodes = {route.decode.name for route in routes if isinstance(route, Pair)}
    assert decodes == ({"decode-0", "decode-1"} if policy is Policy.ROUND_ROBIN else {"decode-1"})
    assert isinstance(choose(engines(2, Role.COMBINED), Needs(), 0, rules), Solo)


def test_short_prompts_go_to_a_combined_engine_if_there_is_one() -> None:
    pair = engines(1) + engines(1, Role.DECODE)
    assert isinstance(choose(pair + engines(1, Role.COMBINED), Needs(short=True), 0), Solo)
    assert isinstance(choose(pair + engines(1, Role.COMBINED), Needs(), 0), Pair)
    assert isinstance(choose(pair, Needs(short=True), 0), Pair)
