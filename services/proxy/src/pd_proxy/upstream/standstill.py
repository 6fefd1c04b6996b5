"""Engines at which nothing moves get new requests only if there is no other, long before they count as stalled."""

import asyncio
from functools import cached_property
from typing import Final

from pd_contracts.names import Role
from pd_proxy.upstream.flights import Flights, Verdict

# How often to look within the limit; the answer holds for all requests in between.
LOOKS: Final = 20


class Standstill:
    """Remembers for a moment which engines stand still: requests wait there, and none of them has got anything for `limit_s`.

    Wrong suspicions are cheap, as such an engine keeps its requests. A combined or decode engine is suspected if streams wait: an answer that is
    not streamed shows nothing while it is written. Prefill's answers are never streamed, so one that finishes none is suspected, too.
    """

    def __init__(self, flights: Flights, limit_s: float) -> None:
        """`limit_s` 0: no engine is ever avoided."""
        self._flights = flights
        self._limit_s = limit_s
        self._due = 0.0
        self._found: frozenset[int] = frozenset()

    def engines(self, now: float) -> frozenset[int]:
        """The incarnations of these engines; `now` in seconds on the event loop's clock."""
        if self._limit_s and now >= self._due:
            self._due = now + self._limit_s / LOOKS
            self._found = frozenset(
                instance.incarnation
                for instance in self._flights.quiet(now - self._limit_s)
                if self._suspected(self._flights.verdict(instance, now, self._limit_s), instance.role)
            )
        return self._found

    def now(self) -> frozenset[int]:
        """`engines` at this moment of the running loop."""
        return self.engines(self._loop.time())

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Looked up once, because that is a system call."""
        return asyncio.get_running_loop()

    @staticmethod
    def _suspected(verdict: Verdict, role: Role) -> bool:
        return verdict is Verdict.STALLED or (verdict is Verdict.DOUBTFUL and role is Role.PREFILL)
