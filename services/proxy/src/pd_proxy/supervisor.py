"""The context of the process that judges engines: the only one, or the parent of those that serve."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from pd_contracts.names import Role
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

# Clients that ask for models that do not exist make the engines be asked no more often than this, and wait no longer than that.
LOOK_INTERVAL_S: Final = 1.0
LOOK_TIMEOUT_S: Final = 2.0


async def nobody_else() -> None:
    """No other process chooses engines, so there is none to wait for."""


@dataclass(kw_only=True, eq=False)
class Supervisor(Context):
    """A context with the registry itself, and what follows from a change in it.

    Attributes:
        heard: waits until everybody who chooses engines knows what the registry says.
        alive: all loops run that should run forever.
        new_debt: set whenever a debt is added.
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
        """If a loop that should run forever ends, the proxy is no longer healthy and says so."""
        loop.add_done_callback(self.loop_ended)
        return loop

    def loop_ended(self, loop: asyncio.Task[None]) -> None:
        """Such a loop ended; it may only have been cancelled."""
        if not loop.cancelled():
            self.alive = False
            logger.critical("a background loop has died", exc_info=loop.exception())

    def ping(self, said: Announcement) -> None:
        """Take in a ping that is believed; raises PingRefusedError."""
        self.noted(self.registry.ping(said.ping, monotonic(), trusted=said.trusted, peer=said.peer))

    def noted(self, changes: Iterable[Change]) -> None:
        """Act on what the registry says has changed."""
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
        """Give an instance no more requests, and end those that it keeps waiting. What its canaries said does not count any more.

        Prefill is never ended half-way: what it still pushes must be consumed, and its clients have a timeout of their own.
        """
        self.noted(self.registry.suspect(instance, reason))
        self.trust.forget(instance)
        if instance.role is not Role.PREFILL:
            self.flights.abort(instance, StalledError(f"{instance.name} stands still"))

    async def look_again(self) -> None:
        """As `Context.look_again`."""
        now = monotonic()
        if self._looking is None or (self._looking.done() and now - self._looked_at >= LOOK_INTERVAL_S):
            self._looked_at = now
            self._looking = self.tasks.spawn(self._look())
        await asyncio.wait([self._looking], timeout=LOOK_TIMEOUT_S)

    async def _look(self) -> None:
        """Ask all ready engines at once. What one that does not answer serves is left as it is: health checks judge it."""
        ready = [instance for instance in self.registry.view() if instance.state is State.READY]
        asked = (ask_models(self.upstream, i, LOOK_TIMEOUT_S, self.settings.model) for i in ready)
        for instance, models in zip(ready, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if not isinstance(models, BaseException):
                self.noted(self.registry.healthy(instance, models))

    async def next_check(self) -> None:
        """Sleep until health checks are due: an interval, or less if somebody joins."""
        try:
            async with asyncio.timeout(self.settings.health_interval_s):
                await self._joined.wait()
        except TimeoutError:
            pass  # the interval is over
        self._joined.clear()

    def owe(self, debt: Debt) -> None:
        """As `Context.owe`; a debt that has been tried too often is given up."""
        if self.debts.add(debt):
            self.new_debt.set()
        else:
            self.metrics.drained("failed")
            logger.warning("KV may be left forever at a decode", extra={"tries": debt.tries})


def alone(settings: Settings) -> Supervisor:
    """The context of a process that does everything.

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
    """An empty registry with the bounds of the settings."""
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
