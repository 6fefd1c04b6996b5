"""The context of the process that judges engines: a single process, or the parent of the workers."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from pd_contracts.names import Role
from pd_contracts.ping import Ping
from pd_proxy.access import Keys
from pd_proxy.context import Context
from pd_proxy.discovery.belief import Announcement
from pd_proxy.engines.registry import Change, Instance, Registry, State, unnamed
from pd_proxy.engines.trust import Trust
from pd_proxy.errors import RestartedError, StalledError
from pd_proxy.kv.budget import Budget
from pd_proxy.kv.debts import Debt, Debts
from pd_proxy.metrics import Metrics
from pd_proxy.settings import Settings
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.access import access_of
from pd_proxy.upstream.flights import Flights
from pd_proxy.upstream.http import Upstream
from pd_proxy.upstream.models import ask_models

logger = logging.getLogger(__name__)

# If clients ask for unknown models, engines are asked at most once per interval, and clients wait no longer than the timeout.
LOOK_INTERVAL_S: Final = 1.0
LOOK_TIMEOUT_S: Final = 2.0


async def nobody_else() -> None:
    """Do not wait: no other process chooses engines."""


@dataclass(kw_only=True, eq=False)
class Supervisor(Context):
    """A context that owns the registry, and acts on its changes.

    Attributes:
        heard: waits until all processes that choose engines know the registry's present state.
        alive: all background loops are running.
        new_debt: set when a debt is added.
    """

    registry: Registry
    debts: Debts
    heard: Callable[[], Awaitable[None]] = nobody_else
    alive: bool = True
    new_debt: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """What follows from the parts."""
        super().__post_init__()
        self._joined = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = 0.0

    def shown(self) -> list[Instance]:
        """The instances as `/stats` and `/metrics` show them."""
        return self.trust.shown(self.registry.view())

    def guard(self, loop: asyncio.Task[None]) -> asyncio.Task[None]:
        """Watch a background loop: if it ends, the proxy reports that it is not healthy."""
        loop.add_done_callback(self.loop_ended)
        return loop

    def loop_ended(self, loop: asyncio.Task[None]) -> None:
        """A background loop ended. If it was cancelled, that is in order."""
        if not loop.cancelled():
            self.alive = False
            logger.critical("a background loop has died", exc_info=loop.exception())

    def ping(self, said: Announcement) -> None:
        """Give the registry a ping that is believed; raises PingRefusedError."""
        self.noted(self.registry.ping(said.ping, monotonic(), trusted=said.trusted, peer=said.peer))

    def goes_on(self, ping: Ping) -> bool:
        """As `Registry.goes_on`, now."""
        return self.registry.goes_on(ping, monotonic())

    def noted(self, changes: Iterable[Change]) -> None:
        """Act on changes in the registry."""
        for change in changes:
            _log(change)
            if change.gone is not None:
                self.trust.forget(change.gone)
                self.flights.abort(change.gone, RestartedError(f"{change.gone.name} restarted"))
            if change.gone is change.instance:
                self.flights.forget(change.instance)
            if change.instance.state is State.JOINING:
                self._joined.set()

    def unreachable(self, instance: Instance, reason: str) -> None:
        """As `Context.unreachable`."""
        self.noted(self.registry.unhealthy(instance, reason, refuses=True))

    def suspect(self, instance: Instance, reason: str) -> None:
        """Give an instance no more requests, end those that wait for it, and drop the verdicts of its canaries.

        A prefill is never aborted: what it still pushes must be consumed, and its clients have a timeout of their own.
        """
        self.noted(self.registry.suspect(instance, reason))
        self.trust.forget(instance)
        if instance.role is not Role.PREFILL:
            self.flights.abort(instance, StalledError(f"{instance.name} has stalled"))

    async def look_again(self) -> None:
        """As `Context.look_again`."""
        now = monotonic()
        if self._looking is None or (self._looking.done() and now - self._looked_at >= LOOK_INTERVAL_S):
            self._looked_at = now
            self._looking = self.tasks.spawn(self._look())
        await asyncio.wait([self._looking], timeout=LOOK_TIMEOUT_S)

    async def _look(self) -> None:
        """Ask all ready engines at once. An engine that does not answer keeps its models: health checks judge it."""
        ready = [instance for instance in self.registry.view() if instance.state is State.READY]
        asked = (ask_models(self.upstream, i, LOOK_TIMEOUT_S, self.settings.model) for i in ready)
        for instance, models in zip(ready, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if not isinstance(models, BaseException):
                self.noted(self.registry.healthy(instance, models))

    async def next_check(self) -> None:
        """Sleep until health checks are due: for an interval, or until an engine joins."""
        try:
            async with asyncio.timeout(self.settings.health_interval_s):
                await self._joined.wait()
        except TimeoutError:
            pass  # the interval is over
        self._joined.clear()

    def owe(self, debt: Debt) -> None:
        """As `Context.owe`; a debt that could not be repaid after several attempts is given up."""
        if self.debts.add(debt):
            self.new_debt.set()
        else:
            self.metrics.drained("failed")
            logger.warning("KV may stay at a decode engine until it restarts", extra={"tries": debt.tries})


def alone(settings: Settings) -> Supervisor:
    """The context of a proxy with a single process.

    Raises:
        OSError: if the file of keys, or of engines' authorities, cannot be read.
    """
    registry, trust, debts = registry_of(settings), Trust(needed=settings.canary), Debts()
    budget = Budget(settings.kv_in_flight_bytes, settings.kv_bytes_per_token)
    metrics = Metrics(lambda: trust.shown(registry.view()), budget.claimed, debts.__len__)
    shortage = Shortage(metrics.connection_refused)
    return Supervisor(
        settings=settings,
        registry=registry,
        trust=trust,
        debts=debts,
        flights=Flights(),
        budget=budget,
        metrics=metrics,
        shortage=shortage,
        upstream=Upstream(settings.connect_timeout_s, settings.max_answer_bytes, shortage, access_of(settings)),
        turns=itertools.count(),
        keys=Keys(settings.api_keys_file),
        started=monotonic(),
    )


def registry_of(settings: Settings) -> Registry:
    """An empty registry with the limits of the settings."""
    return Registry(
        ping_ttl_s=settings.ping_ttl_s,
        health_failures=settings.health_failures,
        default_connector=unnamed(settings.kv_connector),
    )


def _log(change: Change) -> None:
    instance = change.instance
    extra = {
        "instance": instance.name,
        "state": instance.state.value,
        "before": change.before.value if change.before is not None else "",
        "reason": instance.reason,
    }
    if change.gone is instance:
        logger.info("instance forgotten", extra=extra)
    elif change.gone is not None:
        logger.warning("instance restarted", extra=extra)
    else:
        logger.log(_LEVELS[instance.state], "instance changed", extra=extra)


_LEVELS = {
    State.JOINING: logging.INFO,
    State.READY: logging.INFO,
    State.DRAINING: logging.INFO,
    State.SUSPECT: logging.WARNING,
    State.LOST: logging.WARNING,
}
