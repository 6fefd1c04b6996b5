"""A proxy with simulated engines in this process, and one plain engine that it does not know, to compare with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.proxy import RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts.names import Connector, Role

# What decode did not compute itself.
EXTERNAL = 'vllm:prompt_tokens_by_source_total{engine="0",model_name="sim-llama3-8b",source="external_kv_transfer"'


@dataclass
class Deployment:
    """The proxy, and engines as they are asked for."""

    proxy: RunningProxy
    plain: Simulator
    engines: AsyncExitStack
    connector: Connector
    shared: str
    step_ms: float = 0.5

    async def engine(self, role: Role) -> Simulator:
        """Start an engine, and wait until it is admitted."""
        port = self.proxy.settings.proxy_port
        settings = settings_for(
            role,
            proxy_port=port,
            kv_connector=self.connector,
            kv_shared_path=self.shared,
            kv_lease_s=1.0,
            sim_leak_s=0.2,
        )
        before = len((await self.proxy.stats()).instances)
        engine = await self.engines.enter_async_context(running(settings, fast_profile(self.step_ms)))
        await self.proxy.stats_where(
            lambda stats: len(stats.instances) > before and all(i.state == "ready" for i in stats.instances)
        )
        return engine

    async def pair(self) -> tuple[Simulator, Simulator]:
        return await self.engine(Role.PREFILL), await self.engine(Role.DECODE)


@contextlib.asynccontextmanager
async def deployed(connector: Connector, folder: Path, **settings: Any) -> AsyncIterator[Deployment]:
    """A proxy without engines yet; those of the connector that shares files share `folder`."""
    fast = {"ping_ttl_s": 3.5, "prefill_timeout_s": 2.0, "decode_stall_timeout_s": 1.0}
    async with AsyncExitStack() as engines:
        plain = await engines.enter_async_context(running(settings_for(), fast_profile()))
        proxy = await engines.enter_async_context(running_proxy(**fast | settings))
        yield Deployment(proxy, plain, engines, connector, str(folder))


async def books(entry: str, *engines: Simulator) -> int:
    """One entry of the engines' books, added up."""
    return sum([(await engine.books())[entry] for engine in engines])


async def nothing_is_left(*engines: Simulator) -> None:
    """Wait until no engine holds KV for anybody.

    Raises:
        TimeoutError: if some does for seconds.
    """
    async with asyncio.timeout(20):
        while await books("held", *engines) + await books("waiting", *engines) + await books("leaked", *engines):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
