"""Health checks: what turns an engine that pings into one that gets requests, and back.

vLLM starts to ping before it has loaded its weights, so a ping says only where to ask. What an engine serves is asked again and again:
adapters come and go, and vLLM's own pings do not tell that another process answers at an address.
"""

import asyncio
import logging
from time import monotonic

from pd_contracts.names import Connector
from pd_proxy.engines.registry import Instance, State, Told
from pd_proxy.errors import ConnectTimeoutError, OutOfDescriptorsError, RefusedError, UnreachableError, UpstreamError
from pd_proxy.kv.engine_page import told_by
from pd_proxy.settings import Writer
from pd_proxy.supervisor import Supervisor
from pd_proxy.upstream.models import ask_models, ask_version, check_health

logger = logging.getLogger(__name__)


class Admission:
    """Checks every engine that pings, each on its own, so that a slow one does not delay others."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context
        self._checking: set[int] = set()
        self._asked: dict[int, float] = {}
        self._told_of: dict[int, str] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                view = self._context.registry.view()
                for instance in view:
                    if instance.state is not State.LOST and instance.incarnation not in self._checking:
                        self._checking.add(instance.incarnation)
                        group.create_task(self._check(instance))
                known = {instance.incarnation for instance in view}
                self._asked = {number: at for number, at in self._asked.items() if number in known}
                self._told_of = {number: why for number, why in self._told_of.items() if number in known}
                await self._context.next_check()

    async def _check(self, instance: Instance) -> None:
        registry, settings = self._context.registry, self._context.settings
        began = asyncio.get_running_loop().time()
        try:
            await check_health(self._context.upstream, instance, settings.health_timeout_s)
            if registry.current(instance) is None:
                return  # it has restarted; its successor has a check of its own
            models, version = registry.models(instance), instance.version
            told = None
            if instance.state is State.JOINING or monotonic() >= self._asked.get(instance.incarnation, 0.0):
                models = await ask_models(self._context.upstream, instance, settings.health_timeout_s, settings.model)
                self._asked[instance.incarnation] = monotonic() + settings.models_interval_s
                # Neither Kubernetes nor vLLM's own pings tell the version, and what an engine can do depends on it.
                version = version or await ask_version(self._context.upstream, instance, settings.health_timeout_s)
                told = await self._told(instance)
            changes = registry.healthy(instance, models, version, told)
        except OutOfDescriptorsError:
            changes = []  # this says nothing about the engine
        except UpstreamError as error:
            refuses = isinstance(error, UnreachableError) and not isinstance(error, ConnectTimeoutError)
            # A refusal is an answer. A late answer is not, and says nothing about an engine whose streams move meanwhile.
            certain = refuses or isinstance(error, RefusedError)
            if not certain and self._context.flights.moved_since(instance, began):
                return
            self._tell(instance, error.message)
            changes = registry.unhealthy(instance, error.message, certain=certain, refuses=refuses)
        finally:
            self._checking.discard(instance.incarnation)
        self._context.noted(changes)

    def _tell(self, instance: Instance, reason: str) -> None:
        """Log why an engine is not admitted, once: its state does not change, so nothing else tells."""
        if instance.state is State.JOINING and self._told_of.get(instance.incarnation) != reason:
            self._told_of[instance.incarnation] = reason
            logger.info("engine not admitted yet", extra={"instance": instance.name, "reason": reason})

    async def _told(self, instance: Instance) -> Told | None:
        """What the engine's /metrics page tells, if it matters and is not known."""
        settings = self._context.settings
        continues = settings.migrate or settings.first_token is Writer.PREFILL
        seeds = continues and instance.connector is Connector.P2P and not instance.draws
        if not seeds and not (settings.predicts and not instance.kv_tokens):
            return None
        try:
            return told_by(await self._context.upstream.get(instance, "/metrics", settings.health_timeout_s))
        except (OutOfDescriptorsError, UpstreamError):
            return None
