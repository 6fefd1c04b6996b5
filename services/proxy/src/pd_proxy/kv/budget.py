"""KV on its way to each decode engine, in bytes as estimated from the prompts, and the queue of those that wait for room.

A P2pNccl decode takes what prefill pushes into a buffer of limited size, whose overflow ends in pinned host memory and then in
a decode that stands still forever. So the proxy lets no more go out than fits: a request counts from its dispatch to prefill
until decode has answered, or consumed what nobody waits for any more.
"""

import asyncio
from collections import Counter

from pd_contracts.names import Connector
from pd_proxy.engines.pairing import Late, Pair, Route, Solo
from pd_proxy.engines.registry import Instance
from pd_proxy.kv.transfer import Plan
from pd_proxy.protocol.generation import Generation, approximate_tokens


class Claim:
    """Room for one request's KV; given back once, however often it is released."""

    __slots__ = ("_budget", "_size", "decode", "prefill")

    def __init__(self, budget: "Budget", prefill: int, decode: int, size: int) -> None:
        """Use `Budget.claim`; engines are incarnations, and without a size nothing is claimed."""
        self._budget = budget
        self._size = size
        self.prefill = prefill
        self.decode = decode

    def covers(self, pair: Pair, plan: Plan) -> None:
        """What it is for; needed only where another process may have to see to it."""

    def release(self) -> None:
        """The KV has arrived, or there is none."""
        size, self._size = self._size, 0
        if size:
            self._budget.give_back(self, size)


class Budget:
    """What is claimed at every decode; `limit` is in bytes per decode, 0 for none."""

    def __init__(self, limit: int, bytes_per_token: int, turn: asyncio.Lock | None = None) -> None:
        """`turn` lets those that wait for room in one by one, in the order in which they came."""
        self.limit = limit
        self.turn = turn or asyncio.Lock()
        self._bytes_per_token = bytes_per_token
        self._claimed: Counter[int] = Counter()
        self._handovers: Counter[int] = Counter()
        self._released = asyncio.Event()

    def size(self, generation: Generation) -> int:
        """Bytes of KV that a request will have; every sequence of `n` hands over its own."""
        return approximate_tokens(generation) * generation.copies * self._bytes_per_token

    def claimed(self, instance: Instance) -> int:
        """Bytes on their way to an engine."""
        return self._claimed[instance.incarnation]

    def fits(self, instance: Instance, size: int) -> bool:
        """Whether so much more may go there; what is larger than the limit may go alone.

        A P2pConnector decode gives prefill credit for what it has room for, so nothing needs to be counted here.
        """
        if not self.limit or instance.connector is Connector.P2P:
            return True
        claimed = self.claimed(instance)
        return not claimed or claimed + size <= self.limit

    def handovers(self, instance: Instance) -> int:
        """Claims in which an engine, a prefill or a decode, has a part: it must not be stopped while there are any."""
        return self._handovers[instance.incarnation]

    def take(self, route: Route, size: int) -> Claim | None:
        """Room at the route's decode, if there is enough."""
        if isinstance(route, Pair) and not self.fits(route.decode, size):
            return None
        return self.claim(route, size)

    def claim(self, route: Route, size: int) -> Claim:
        """Take room at the route's decode, whether or not there is enough; an engine that does both needs none."""
        if isinstance(route, Solo):
            return Claim(self, 0, 0, 0)
        prefill, decode = ends(route)
        claim = Claim(self, prefill.incarnation, decode.incarnation, size)
        if size:
            self._claimed[claim.decode] += size
            self._handovers.update((claim.prefill, claim.decode))
        return claim

    def give_back(self, claim: Claim, size: int) -> None:
        """Room is free again."""
        self._claimed[claim.decode] -= size
        self._handovers.subtract((claim.prefill, claim.decode))
        for counter in (self._claimed, self._handovers):
            for incarnation in (claim.prefill, claim.decode):
                if not counter[incarnation]:
                    del counter[incarnation]
        self._released.set()

    async def released(self) -> None:
        """Wait until somebody gives room back, or a moment: an engine may have joined."""
        self._released.clear()
        try:
            async with asyncio.timeout(0.5):
                await self._released.wait()
        except TimeoutError:
            pass  # look again in any case


def ends(route: Pair | Late) -> tuple[Instance, Instance]:
    """Where KV comes from, and where it goes; as long as that is unknown it stays at prefill."""
    return route.prefill, route.decode if isinstance(route, Pair) else route.prefill
