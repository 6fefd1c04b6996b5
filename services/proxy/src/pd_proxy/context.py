"""What serving requests needs for as long as the process lives, in one object that is passed to everything above it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Final, Protocol

from pd_proxy.access import Keys
from pd_proxy.engines.known import KnownChoices
from pd_proxy.engines.pairing import Rules
from pd_proxy.engines.registry import Instance
from pd_proxy.engines.trust import Trust
from pd_proxy.errors import ShuttingDownError
from pd_proxy.kv.budget import Budget
from pd_proxy.kv.debts import Debt
from pd_proxy.metrics import Metrics
from pd_proxy.refused import RefusedRequests
from pd_proxy.router import Router
from pd_proxy.settings import Settings
from pd_proxy.shortage import Shortage
from pd_proxy.tasks import Tasks
from pd_proxy.uploads import Uploads
from pd_proxy.upstream.flights import Flights
from pd_proxy.upstream.http import Upstream
from pd_proxy.upstream.standstill import Standstill
from pd_routing.books import Books

# A client may send a request over a kept connection at the moment at which that is closed, and then it would be lost. So for this time
# each such request is still served, and the answer says that the connection ends.
LAST_CALL_S: Final = 1.0


class Engines(Protocol):
    """The engines that this process knows."""

    def view(self) -> tuple[Instance, ...]:
        """All engines; the same object as long as nothing changes."""

    def current(self, instance: Instance) -> Instance | None:
        """The instance as it is now, or None if its process is gone."""


@dataclass(kw_only=True, eq=False)
class Context(ABC):
    """Settings, state and connections of one process. Its subclasses say which process judges engines: see `Supervisor` and `WorkerContext`.

    Attributes:
        keys: the clients' API keys; if empty, clients need none.
        turns: numbers the requests, for the load-balancing policies.
        started: when the proxy began to serve, on the monotonic clock.
        stand_ins: by engine process, a token id that a prompt may hold in place of prefill's token; None if the engine named none.
        stopping: the process is about to end, so it is not ready. Connections that clients have kept may bring a last request.
        refusing: no more requests are accepted.
        over: the time to drain is over, so nothing is tried again or continued.
    """

    settings: Settings
    registry: Engines
    trust: Trust
    flights: Flights
    budget: Budget
    metrics: Metrics
    shortage: Shortage
    upstream: Upstream
    turns: Iterator[int]
    keys: Keys
    started: float
    tasks: Tasks = field(default_factory=Tasks)
    stand_ins: dict[int, int | None] = field(default_factory=dict)
    stopping: bool = False
    refusing: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        """What follows from the parts."""
        self.limits = self.settings.limits()
        self.uploads = Uploads(self.settings.max_upload_bytes, monotonic, partial(self.shortage.noted, "uploads"))
        self.refused = RefusedRequests(self.metrics.request_refused)
        self.router = _router_of(self.settings, self.trust) if self.settings.predicts else None
        self.standstill = Standstill(self.flights, self.settings.standstill_s)
        self.rules = Rules(self.settings.policy, self.trust, self.flights.load)
        self.choices = KnownChoices(self.trust)

    @abstractmethod
    def unreachable(self, instance: Instance, reason: str) -> None:
        """An engine refuses connections, so no request should go there until its next good health check."""

    @abstractmethod
    def owe(self, debt: Debt) -> None:
        """Remember KV that a decode has to consume although no client needs it any more."""

    @abstractmethod
    async def look_again(self) -> None:
        """Ask the engines which models they serve, unless that was just done; returns when they have answered, or after LOOK_TIMEOUT_S."""

    def stop_soon(self) -> None:
        """Take no more requests after LAST_CALL_S; after DRAIN_TIMEOUT_S, streams that are still open get an error event."""
        self.stopping = True
        loop = asyncio.get_running_loop()
        loop.call_later(min(LAST_CALL_S, self.settings.drain_timeout_s), self._refuse)
        loop.call_later(self.settings.drain_timeout_s, self.end_all)

    def end_all(self) -> None:
        """End all requests that are at engines; their clients are told."""
        self.over = True
        self.flights.abort_all(ShuttingDownError("the proxy is shutting down"))

    def _refuse(self) -> None:
        self.refusing = True


def _router_of(settings: Settings, trust: Trust) -> Router:
    books = Books(settings.costs(), settings.objectives(), share=settings.proxy_replicas)
    return Router(books, trust, routing=settings.routing, reject=settings.reject)
