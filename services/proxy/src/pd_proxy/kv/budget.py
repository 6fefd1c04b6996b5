"""KV on its way to each decode engine, in bytes estimated from the prompts, and the queue of requests that wait for room.

A P2pNccl decode receives what prefill pushes in a buffer of limited size. When it overflows, KV goes to pinned host memory, and in the
end the decode stalls forever. So the proxy lets only as much be sent as fits: a request counts from its dispatch to prefill until
decode has answered, or has consumed KV that no client needs any more.
"""

import asyncio
from collections import defaultdict

from pd_contracts.names import Connector
from pd_proxy.engines.pairing import Late, Pair, Route, Solo
from pd_proxy.engines.registry import Instance
from pd_proxy.kv.transfer import Plan
from pd_proxy.protocol.generation import Generation


class Claim:
    """Room for one request's KV; given back once, however often it is released."""

    __slots__ = ("_budget", "_size", "decode", "prefill")

    def __init__(self, budget: "Budget", prefill: int, decode: int, size: int) -> None:
        """Use `Budget.claim`. Engines are given as incarnations; a `size` of 0 claims nothing."""
        self._budget = budget
        self._size = size
        self.prefill = prefill
        self.decode = decode

    def covers(self, pair: Pair, plan: Plan) -> None:
        """Say what the claim is for; needed only if another process may have to take it over."""

    def release(self) -> None:
        """Release the room: the KV has arrived, or there is none."""
        size, self._size = self._size, 0
        if size:
            self._budget.give_back(self, size)


class Budget:
    """The bytes claimed at each decode; `limit` is in bytes per decode, 0 for no limit."""

    def __init__(self, limit: int, bytes_per_token: int, turn: asyncio.Lock | None = None) -> None:
        """`turn` admits requests that wait for room one by one, in the order of their arrival."""
        self.limit = limit
        self.turn = turn or asyncio.Lock()
        self._bytes_per_token = bytes_per_token
        # By incarnation; engines with nothing are not in them, because engines come and go.
        self._claimed: defaultdict[int, int] = defaultdict(int)
        self._handovers: defaultdict[int, int] = defaultdict(int)
        self._released = asyncio.Event()

    def size(self, generation: Generation) -> int:
        """Bytes of KV that a request will need; each of its `n` sequences hands over its own."""
        return generation.tokens * generation.copies * self._bytes_per_token

    def claimed(self, instance: Instance) -> int:
        """Bytes on their way to an engine."""
        return self._claimed.get(instance.incarnation, 0)

    def fits(self, instance: Instance, size: int) -> bool:
        """Whether `size` more bytes may go to an engine; a request above the limit may go alone.

        A P2pConnector decode gives prefill credit for the room that it has, so nothing needs to be counted here.
        """
        if not self.limit or instance.connector is Connector.P2P:
            return True
        claimed = self.claimed(instance)
        return not claimed or claimed + size <= self.limit

    def handovers(self, instance: Instance) -> int:
        """The number of claims that involve an engine, as prefill or decode; it must not be stopped while there are any."""
        return self._handovers.get(instance.incarnation, 0)

    def take(self, route: Route, size: int) -> Claim | None:
        """Claim room at the route's decode; None if there is not enough."""
        if isinstance(route, Pair) and not self.fits(route.decode, size):
            return None
        return self.claim(route, size)

    def claim(self, route: Route, size: int) -> Claim:
        """Claim room at the route's decode, even if there is not enough; a combined engine needs none."""
        if isinstance(route, Solo):
            return Claim(self, 0, 0, 0)
        prefill, decode = ends(route)
        claim = Claim(self, prefill.incarnation, decode.incarnation, size)
        if size:
            self._claimed[claim.decode] += size
            self._handovers[claim.prefill] += 1
            self._handovers[claim.decode] += 1
        return claim

    def give_back(self, claim: Claim, size: int) -> None:
        """Free a claim's room."""
        _take(self._claimed, claim.decode, size)
        _take(self._handovers, claim.prefill, 1)
        _take(self._handovers, claim.decode, 1)
        self._released.set()

    async def released(self) -> None:
        """Wait until room is freed, but only for a moment: an engine may have joined."""
        self._released.clear()
        try:
            async with asyncio.timeout(0.5):
                await self._released.wait()
        except TimeoutError:
            pass  # the caller looks again in any case


def _take(counts: dict[int, int], key: int, amount: int) -> None:
    """Subtract; what has become 0 is dropped."""
    counts[key] -= amount
    if not counts[key]:
        del counts[key]


def ends(route: Pair | Late) -> tuple[Instance, Instance]:
    """The engine that KV comes from and the one that it goes to; while decode is not chosen, both are prefill."""
    return route.prefill, route.decode if isinstance(route, Pair) else route.prefill
