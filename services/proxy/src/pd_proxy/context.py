"""Everything that lives as long as the proxy, in one place."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

from pd_contracts.names import Role
from pd_contracts.ping import Ping
from pd_proxy.access import check_networks, read_keys
from pd_proxy.engines.pairing import Rules
from pd_proxy.engines.registry import Change, Instance, Registry, State
from pd_proxy.engines.trust import Trust
from pd_proxy.errors import RestartedError, ShuttingDownError, StalledError
from pd_proxy.kv.budget import Budget
from pd_proxy.kv.debts import Debt, Debts
from pd_proxy.metrics import Metrics
from pd_proxy.settings import Settings
from pd_proxy.tasks import Tasks
from pd_proxy.upstream.flights import Flights
from pd_proxy.upstream.http import Upstream

logger = logging.getLogger(__name__)


class Context:
    """Settings, state and connections of one proxy."""

    def __init__(self, settings: Settings) -> None:
        """Build everything that needs no event loop.

        Raises:
            OSError: if the file of keys cannot be read.
        """
        self.settings = settings
        self.registry = Registry(
            ping_ttl_s=settings.ping_ttl_s,
            health_failures=settings.health_failures,
            default_connector=settings.kv_connector,
        )
        self.keys = read_keys(settings.api_keys_file)
        self._networks = settings.networks()
        self.flights = Flights()
        self.trust = Trust(needed=settings.canary)
        self.budget = Budget(settings.kv_in_flight_bytes, settings.kv_bytes_per_token)
        self.debts = Debts()
        self.metrics = Metrics(self.shown, self.budget.claimed, self.debts.__len__)
        self.tasks = Tasks()
        self.collect: Callable[[str], None] = lambda _: None
        self.upstream = Upstream(settings.connect_timeout_s)
        self.turns: Iterator[int] = itertools.count()
        self.rules = Rules(settings.policy, self.trust, self.load)
        self.started = monotonic()
        self.stopping = False
        self.alive = True
        self._joined = asyncio.Event()

    def load(self, instance: Instance) -> int:
        """Requests at an engine now, for the policies."""
        return self.flights.load(instance)

    def shown(self) -> list[Instance]:
        """The instances as `/stats` and `/metrics` show them."""
        return self.trust.shown(self.registry.view())

    def guard(self, loop: asyncio.Task[None]) -> asyncio.Task[None]:
        """If a loop that should run for ever ends, the proxy is no longer healthy and says so."""
        loop.add_done_callback(self.loop_ended)
        return loop

    def loop_ended(self, loop: asyncio.Task[None]) -> None:
        """Such a loop ended; it may only have been cancelled."""
        if not loop.cancelled():
            self.alive = False
            logger.critical("a background loop has died", exc_info=loop.exception())

    def ping(self, ping: Ping) -> None:
        """Take in a ping; raises PingRefusedError."""
        check_networks(ping, self._networks)
        self.noted(self.registry.ping(ping, monotonic()))

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

    def suspect(self, instance: Instance, reason: str) -> None:
        """Give an instance no more requests, and end those that it keeps waiting. What its canaries said does not count any more.

        Prefill is never ended half-way: what it still pushes must be consumed, and its clients have a timeout of their own.
        """
        self.noted(self.registry.suspect(instance, reason))
        self.trust.forget(instance)
        if instance.role is not Role.PREFILL:
            self.flights.abort(instance, StalledError(f"{instance.name} stands still"))

    async def heard(self) -> None:
        """Wait until everybody who chooses engines knows what the registry says; here that is nobody else."""

    async def next_check(self) -> None:
        """Sleep until health checks are due: an interval, or less if somebody joins."""
        try:
            async with asyncio.timeout(self.settings.health_interval_s):
                await self._joined.wait()
        except TimeoutError:
            pass  # the interval is over
        self._joined.clear()

    def owe(self, debt: Debt) -> None:
        """Remember KV that has to be used up at a decode, and begin to see to it."""
        if self.debts.add(debt):
            self.collect(debt.address)
        else:
            self.metrics.drained("failed")
            logger.warning("KV may be left for ever at a decode", extra={"tries": debt.tries})

    def stop_soon(self) -> None:
        """Take no more requests; when the time to drain is over, streams still open get an error event."""
        self.stopping = True
        reason = ShuttingDownError("the proxy is shutting down")
        asyncio.get_running_loop().call_later(self.settings.drain_timeout_s, self.flights.abort_all, reason)


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
