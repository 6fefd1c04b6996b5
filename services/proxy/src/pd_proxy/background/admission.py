"""Health checks: what turns an engine that pings into one that gets requests, and back.

vLLM starts to ping before it has loaded its weights, so a ping says only where to ask.
"""

import asyncio
from typing import Any

import msgspec

from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import BrokenReplyError, ConnectTimeoutError, RefusedError, UnreachableError, UpstreamError
from pd_proxy.supervisor import Supervisor


class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


_decoder = msgspec.json.Decoder(_Models)


class Admission:
    """Checks every engine that pings, each on its own, so that a slow one keeps nobody waiting."""

    def __init__(self, context: Supervisor) -> None:
        """Nothing is checked before `run`."""
        self._context = context
        self._checking: set[int] = set()

    async def run(self) -> None:
        """Check for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                for instance in self._context.registry.view():
                    if instance.state is not State.LOST and instance.incarnation not in self._checking:
                        self._checking.add(instance.incarnation)
                        group.create_task(self._check(instance))
                await self._context.next_check()

    async def _check(self, instance: Instance) -> None:
        registry = self._context.registry
        try:
            await self._get(instance, "/health")
            if registry.current(instance) is None:
                return  # it restarted meanwhile; its successor has a check of its own
            models = registry.models(instance) or await self._models(instance)
            changes = registry.healthy(instance, models)
        except UpstreamError as error:
            # A refusal is an answer; being late is not, and may pass.
            certain = isinstance(error, RefusedError | UnreachableError) and not isinstance(error, ConnectTimeoutError)
            changes = registry.unhealthy(instance, error.message, certain=certain)
        finally:
            self._checking.discard(instance.incarnation)
        self._context.noted(changes)

    async def _get(self, instance: Instance, path: str) -> bytes:
        return await self._context.upstream.get(instance, path, self._context.settings.health_timeout_s)

    async def _models(self, instance: Instance) -> tuple[dict[str, Any], ...]:
        """Ask once for each process which models it serves."""
        try:
            models = tuple(_decoder.decode(await self._get(instance, "/v1/models")).data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BrokenReplyError("/v1/models is not a list of models") from None
        wanted = self._context.settings.model
        if not models or not all(isinstance(model.get("id"), str) for model in models):
            raise BrokenReplyError("/v1/models names no model")
        # `root` is the path behind a served name, and MODEL may be either
        if wanted and not any(wanted in (model["id"], model.get("root")) for model in models):
            raise BrokenReplyError(f"does not serve MODEL, but {models[0]['id'][:200]}")
        return models
