"""The requests that are at engines now ("flights"), and whether an engine has stalled.

A stuck vLLM answers its health check and goes on pinging, so only its streams can tell (vLLM 0.23 waits for missing KV without
a timeout inside the model step). An engine has stalled if requests wait for it and none of them has got anything for too long.
Data that a slow client has not read yet does not count as waiting.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import ProxyError
from pd_proxy.upstream.replies import Reply


class Verdict(Enum):
    """A verdict on an engine, from the requests that wait for it."""

    MOVING = auto()
    STALLED = auto()
    # Only non-streamed answers are awaited, which show no progress even if the engine is healthy.
    DOUBTFUL = auto()


def verdict(waits: Iterable[tuple[float, bool]], last_progress: float, now: float, limit: float) -> Verdict:
    """Judge an engine from `(waiting since, not streamed)` of each request that waits for it; all times in seconds."""
    pending = list(waits)
    if not pending or now - max(last_progress, min(since for since, _ in pending)) < limit:
        return Verdict.MOVING
    return Verdict.DOUBTFUL if any(whole for _, whole in pending) else Verdict.STALLED


def earliest(waits: Iterable[tuple[float, bool]]) -> list[tuple[float, bool]]:
    """The longest wait of a stream and of a non-streamed answer, which are all that `verdict` needs."""
    found: dict[bool, float] = {}
    for since, whole in waits:
        found[whole] = min(since, found.get(whole, since))
    return [(since, whole) for whole, since in found.items()]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What `verdict` judges: `(waiting since, not streamed)` of each waiting request, and the time of the last progress."""

    waits: Sequence[tuple[float, bool]] = ()
    last_progress: float = 0.0


@dataclass(slots=True, eq=False)
class Tally:
    """Counts of the requests that were sent to one address; `loop`, because looking it up is a system call each time."""

    requests: int = 0
    failures: int = 0
    last_progress: float = 0.0
    flights: "set[Flight]" = field(default_factory=set)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)


class Flight:
    """One request at one engine; others can end it, with the error that its client gets."""

    __slots__ = (
        "_give_up",
        "_reply",
        "early",
        "events",
        "failure",
        "instance",
        "loop",
        "moved_at",
        "since",
        "tally",
        "whole",
    )

    def __init__(self, instance: Instance, tally: Tally, *, whole: bool) -> None:
        """`whole`: the answer is not streamed, and how long it takes depends on the request.

        `early`: the engine cannot begin yet, because it waits for another one; its silence is no evidence.
        """
        self.instance = instance
        self.whole = whole
        self.early = False
        self.events = 0  # events of a stream that were passed on
        self.failure: ProxyError | None = None
        self.since: float | None = None
        self.moved_at = 0.0
        self.tally = tally
        self.loop = tally.loop
        self._reply: Reply | None = None
        self._give_up: Callable[[], None] | None = None
        tally.flights.add(self)
        tally.requests += 1

    def waits(self) -> None:
        if not self.early:
            self.since = self.loop.time()

    def due(self) -> None:
        """The engine that this one waited for has finished."""
        if self.early:
            self.early = False
            self.waits()

    def moved(self) -> None:
        """The engine sent something that the client must read next."""
        self.since = None
        self.moved_at = self.tally.last_progress = self.loop.time()

    def progressed(self) -> None:
        """The engine sent something that was passed on at once, so the engine is awaited again."""
        self.since = self.moved_at = self.tally.last_progress = self.loop.time()

    def held_up(self) -> None:
        """The client reads no more for now, so the engine is not the cause of the pause."""
        self.since = None

    def opening(self, give_up: Callable[[], None]) -> None:
        """There is no answer yet; `give_up` ends the flight."""
        self._give_up = give_up
        self.waits()

    def attach(self, reply: Reply) -> None:
        """The answer has begun; closing it ends the flight."""
        self._reply = reply

    def abort(self, failure: ProxyError) -> None:
        """End the flight: its client gets this error, and the connection is closed."""
        if self.failure is None and self in self.tally.flights:
            self.failure = failure
            if self._reply is not None:
                self._reply.close()
            elif self._give_up is not None:
                self._give_up()

    def land(self, *, failed: bool = False) -> None:
        """The flight is over; later calls change nothing. An unfinished answer is aborted at the engine."""
        if self not in self.tally.flights:
            return
        self.tally.flights.discard(self)
        self.tally.failures += failed
        if self._reply is not None:
            self._reply.close()


class Flights:
    """All flights, by HTTP address of the engine."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def open(self, instance: Instance, *, whole: bool = False) -> Flight:
        """Count a request that is about to go to `instance`."""
        return Flight(instance, self.tally(instance), whole=whole)

    def tally(self, instance: Instance) -> Tally:
        found = self._tallies.get(instance.http_address)
        if found is None:
            found = self._tallies[instance.http_address] = Tally()
        return found

    def load(self, instance: Instance) -> int:
        """The number of requests at an instance now."""
        return len(self.tally(instance).flights)

    def counts(self, address: str) -> tuple[int, int]:
        """The number of requests ever sent to an address, and how many of them failed."""
        tally = self._tallies.get(address)
        return (tally.requests, tally.failures) if tally is not None else (0, 0)

    def addresses(self) -> list[str]:
        """The HTTP addresses of all engines that ever got a request."""
        return list(self._tallies)

    def quiet(self, then: float) -> list[Instance]:
        """The engines at which requests are now and none has got anything since `then`."""
        tallies = [tally for tally in self._tallies.values() if tally.flights and tally.last_progress <= then]
        return list({f.instance.incarnation: f.instance for tally in tallies for f in tally.flights}.values())

    def evidence(self, address: str) -> Evidence:
        """The evidence about the engine at an address."""
        tally = self._tallies.get(address)
        if tally is None:
            return Evidence()
        waits = [(flight.since, flight.whole) for flight in tally.flights if flight.since is not None]
        return Evidence(waits, tally.last_progress)

    def moved_since(self, instance: Instance, then: float) -> bool:
        """Whether the instance has sent anything to any request after `then`."""
        return self.evidence(instance.http_address).last_progress > then

    def verdict(self, instance: Instance, now: float, limit: float) -> Verdict:
        """Whether the instance has stalled; see `verdict`."""
        found = self.evidence(instance.http_address)
        return verdict(found.waits, found.last_progress, now, limit)

    def abort(self, instance: Instance, failure: ProxyError) -> int:
        """End all flights to one process; returns their number."""
        tally = self._tallies.get(instance.http_address)
        mine = [f for f in tally.flights if f.instance.incarnation == instance.incarnation] if tally else []
        for flight in mine:
            flight.abort(failure)
        return len(mine)

    def abort_overdue(self, instance: Instance, before: float, failure: ProxyError) -> int:
        """End the flights to one engine that have got nothing since `before`; returns their number."""
        flights = self.tally(instance).flights
        waiting = [f for f in flights if f.since is not None and f.since < before]
        for flight in waiting:
            flight.abort(failure)
        return len(waiting)

    def abort_unread(self, before: float, failure: ProxyError) -> int:
        """End the flights whose clients have not read since `before` what the engine sent; returns their number."""
        unread = [
            flight
            for tally in self._tallies.values()
            for flight in tally.flights
            if flight.since is None and 0 < flight.moved_at < before
        ]
        for flight in unread:
            flight.abort(failure)
        return len(unread)

    def abort_all(self, failure: ProxyError) -> None:
        for tally in self._tallies.values():
            for flight in list(tally.flights):
                flight.abort(failure)

    def forget(self, instance: Instance) -> None:
        """Drop the counts of an engine that the registry forgot."""
        self._tallies.pop(instance.http_address, None)
