"""The load-balancing policies: which of several suitable engines serves a request. Pure."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Final

from pd_proxy.engines.registry import Instance

# With prefix affinity, an engine with this many requests more than the least loaded one gets no new ones for a while.
AFFINITY_SLACK: Final = 4

Load = Callable[[Instance], int]


class Policy(StrEnum):
    """The policies, named as in the setting POLICY."""

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    POWER_OF_TWO = "power_of_two"
    PREFIX_AFFINITY = "prefix_affinity"


def pick(policy: Policy, engines: Sequence[Instance], turn: int, load: Load, prefix: bytes = b"") -> Instance:
    """One of `engines` for the `turn`-th request; `load` counts requests at an engine, `prefix` begins the prompt.

    Prefix affinity without a prefix is least loaded, which is what decode engines want: they keep no prefixes.
    """
    match policy:
        case Policy.ROUND_ROBIN:
            return engines[turn % len(engines)]
        case Policy.POWER_OF_TWO:
            return _least(_two(engines, turn), 0, load)
        case Policy.PREFIX_AFFINITY if prefix:
            return _by_prefix(engines, turn, load, prefix)
        case _:
            return _least(engines, turn, load)


def _least(engines: Sequence[Instance], turn: int, load: Load) -> Instance:
    """The least loaded engine; equally loaded ones take turns."""
    start = turn % len(engines)
    return min([*engines[start:], *engines[:start]], key=load)


def _two(engines: Sequence[Instance], turn: int) -> list[Instance]:
    """Two engines, different ones if there are several; pseudo-random, but determined by the turn."""
    draw = int.from_bytes(blake2b(turn.to_bytes(8, "little"), digest_size=8).digest(), "little")
    first, draw = draw % len(engines), draw // len(engines)
    if len(engines) == 1:
        return [engines[0]]
    return [engines[first], engines[(first + 1 + draw % (len(engines) - 1)) % len(engines)]]


def _by_prefix(engines: Sequence[Instance], turn: int, load: Load, prefix: bytes) -> Instance:
    """The engine that the prefix always goes to (rendezvous hashing: when engines join or leave, few prefixes move)."""
    home = max(engines, key=lambda engine: blake2b(prefix, key=engine.name.encode()[:64], digest_size=8).digest())
    least = _least(engines, turn, load)
    return home if load(home) - load(least) <= AFFINITY_SLACK else least
