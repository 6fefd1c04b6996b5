"""How much of each prompt is in a prefix cache, if every engine keeps what it used most recently."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from pd_planner.traffic.load import Ints, Load
from pd_planner.traffic.source import Shared

BLOCK: Final = 16  # vLLM reuses whole blocks of so many tokens


def cached_tokens(load: Load, shared: Sequence[Shared], engine: Ints, kv_tokens: int) -> Ints:
    """Cached tokens of each prompt; `engine` computes it, in the order of arrival, with room for `kv_tokens` of KV.

    A request that comes while the same prefix is computed for the first time counts as a hit, which it would not quite be.
    """
    caches: dict[int, _Cache] = {}
    cached = np.zeros(len(load), np.int64)
    for number in range(len(load)):
        cache = caches.setdefault(int(engine[number]), _Cache(kv_tokens))
        hit = cache.take(shared[number]) // BLOCK * BLOCK
        cached[number] = min(hit, int(load.prompt[number]) - 1)
    return cached


class _Cache:
    """One engine's: parts of prompts by name, the least recently used first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._parts: OrderedDict[str, int] = OrderedDict()
        self._used = 0

    def take(self, parts: Shared) -> int:
        """Tokens at the beginning that are there; afterwards all of them are."""
        hit, matching = 0, True
        for name, tokens in parts:
            known = self._parts.pop(name, 0)
            matching = matching and known >= tokens > 0
            hit += tokens if matching else 0
            self._parts[name] = tokens
            self._used += tokens - known
        while self._used > self._room and self._parts:
            self._used -= self._parts.popitem(last=False)[1]
        return hit
