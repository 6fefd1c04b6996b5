"""Finds stalled engines, and readmits them once a real request has succeeded there.

The evidence is in `flights`. If none of its streams moves, an engine is suspect at once. If only answers without streaming are awaited,
a probe decides. A suspect engine is probed until a probe succeeds, each probe in its own task.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from time import monotonic
from typing import Final

from msgspec import Raw

from pd_contracts.names import Role
from pd_proxy.background.deadlines import Deadlines
from pd_proxy.background.pace import Pace
from pd_proxy.engines.pairing import Pair, compatible
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import ProxyError, StaleConnectionError
from pd_proxy.kv.transfer import plain, plan, stand_in
from pd_proxy.protocol.body import Fields, encoded
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.request.ask import ask
from pd_proxy.request.exchange import Exchange
from pd_proxy.supervisor import Supervisor
from pd_proxy.upstream.flights import Verdict

logger = logging.getLogger(__name__)

# A hanging probe is given up after this many probe intervals, in case the engine has lost it.
PROBE_PATIENCE: Final = 4


class Watchdog:
    """Judges every engine periodically."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context
        self._due: dict[int, float] = {}
        self._deadlines = Deadlines(context)
        self._pace = Pace(min(self._deadlines.period_s, context.settings.ping_ttl_s / 4))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                if await self._pace.on_time():
                    self._look(group)

    def _look(self, group: asyncio.TaskGroup) -> None:
        context = self._context
        context.noted(context.registry.expire(monotonic()))
        self._deadlines.enforce()
        for instance in context.registry.view():
            self._judge(instance, group)

    def limit(self, instance: Instance) -> float:
        """Seconds without progress after which an engine counts as stalled. Prefill gets more, because it answers in one piece however long its prompts are."""
        settings = self._context.settings
        return settings.prefill_timeout_s if instance.role is Role.PREFILL else settings.decode_stall_timeout_s

    def _judge(self, instance: Instance, group: asyncio.TaskGroup) -> None:
        if instance.state is State.SUSPECT:
            self._probe_with(self._readmit, instance, group)
            return
        limit = self.limit(instance)
        match self._context.flights.verdict(instance, asyncio.get_running_loop().time(), limit):
            case Verdict.STALLED:
                self._context.suspect(instance, f"no stream moved for {limit:g} s")
            case Verdict.DOUBTFUL:
                self._probe_with(self._examine, instance, group)
            case Verdict.MOVING:
                pass

    def _probe_with(
        self, conclude: Callable[[Instance], Awaitable[None]], instance: Instance, group: asyncio.TaskGroup
    ) -> None:
        """Start a probe unless one is running; probes start PROBE_INTERVAL_S apart."""
        now = monotonic()
        due = self._due.get(instance.incarnation, 0.0)
        if now < due:
            return

        async def run() -> None:
            self._due[instance.incarnation] = float("inf")
            await conclude(instance)
            self._due[instance.incarnation] = monotonic() + self._context.settings.probe_interval_s

        self._due = {key: value for key, value in self._due.items() if value > now}
        group.create_task(run())

    async def _readmit(self, instance: Instance) -> None:
        """Probe a suspect engine; a probe that succeeds clears every engine that took part in it."""
        timeout_s = min(self.limit(instance), PROBE_PATIENCE * self._context.settings.probe_interval_s)
        if await self._probe(instance, timeout_s) is Outcome.SERVED:
            logger.info("probe succeeded", extra={"instance": instance.name})

    async def _examine(self, instance: Instance) -> None:
        """Probe a doubtful engine: success counts as progress; failure at this engine makes it suspect."""
        limit = self.limit(instance)
        if await self._probe(instance, limit) is Outcome.FAILED:
            self._context.suspect(instance, f"neither its requests nor a probe made progress for {limit:g} s")

    async def _probe(self, instance: Instance, timeout_s: float) -> "Outcome":
        """Send one small request through the instance, with a partner if it needs one."""
        if instance.role is Role.COMBINED:
            return await self._outcome(instance, self._ask_combined(instance, timeout_s))
        pair = self._pair(instance)
        if pair is None:
            return Outcome.UNKNOWN
        model = next(model for model in pair.prefill.models if model in pair.decode.models)
        exchange = Exchange(self._context, pair, plan(pair, Endpoint.COMPLETIONS, _body(model), {}))
        try:
            handover = await exchange.prefill()
        except ProxyError as error:
            return _failed(error) if instance is pair.prefill else Outcome.UNKNOWN
        if self._context.registry.current(pair.decode) is None:
            return Outcome.UNKNOWN
        outcome = await self._outcome(pair.decode, exchange.decode(handover, timeout_s))
        if outcome is Outcome.SERVED:
            self._context.noted(self._context.registry.clear(pair.prefill))
        return outcome if instance is pair.decode else Outcome.UNKNOWN

    async def _ask_combined(self, engine: Instance, timeout_s: float) -> bytes:
        _, leg = plain(Endpoint.COMPLETIONS, _body(engine.models[0]), {})
        async with asyncio.timeout(timeout_s):
            return await ask(self._context, engine, Endpoint.COMPLETIONS, leg)

    async def _outcome(self, engine: Instance, answered: Awaitable[bytes]) -> "Outcome":
        try:
            await answered
        except (ProxyError, TimeoutError) as error:
            logger.debug("probe failed", extra={"instance": engine.name, "error": repr(error)})
            return _failed(error)
        self._context.noted(self._context.registry.clear(engine))
        return Outcome.SERVED

    def _pair(self, instance: Instance) -> Pair | None:
        """The instance with a partner, if possible a ready one; two suspect engines are probed together."""
        partner_role = Role.DECODE if instance.role is Role.PREFILL else Role.PREFILL
        view = self._context.registry.view()
        partners = [i for i in view if i.role is partner_role and compatible(i, instance)]
        for state in (State.READY, State.SUSPECT):
            for partner in partners:
                if partner.state is state:
                    return Pair(instance, partner) if instance.role is Role.PREFILL else Pair(partner, instance)
        return None


class Outcome(Enum):
    """What a probe says about the engine that it examines."""

    SERVED = auto()
    FAILED = auto()
    UNKNOWN = auto()


def _failed(error: Exception) -> Outcome:
    return Outcome.UNKNOWN if isinstance(error, StaleConnectionError) else Outcome.FAILED


def _body(model: str) -> Fields:
    return stand_in(Endpoint.COMPLETIONS, {"model": encoded(model)}) | {"temperature": Raw(b"0")}
