"""KV in the simulators' books: whenever clients leave, everything that prefill pushed is consumed, and nobody waits for more."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.proxy import RawClient, RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts.names import Connector, Role

REQUESTS = 60


@contextlib.asynccontextmanager
async def simulated(connector: Connector, shared: Path) -> AsyncIterator[tuple[RunningProxy, Simulator, Simulator]]:
    """A proxy with a simulated prefill and decode."""
    async with contextlib.AsyncExitStack() as stack:
        # real pings come every 3 s
        proxy = await stack.enter_async_context(running_proxy(ping_ttl_s=10.0))
        engines = [
            await stack.enter_async_context(
                running(
                    settings_for(
                        role,
                        kv_connector=connector,
                        proxy_port=proxy.settings.proxy_port,
                        kv_shared_path=str(shared),
                    ),
                    fast_profile(step_ms=2.0),
                )
            )
            for role in (Role.PREFILL, Role.DECODE)
        ]
        await proxy.stats_where(lambda stats: stats.ready)
        yield proxy, engines[0], engines[1]


@pytest.mark.parametrize("connector", list(Connector))
async def test_clients_that_leave_at_random_leave_no_kv_behind(connector: Connector, tmp_path: Path) -> None:
    chance = random.Random(7)

    async def come_and_go(proxy: RunningProxy, number: int) -> None:
        await asyncio.sleep(chance.random())
        prompt = [chance.randrange(1000) for _ in range(chance.choice([2, 20, 200]))]
        body = {"prompt": prompt, "max_tokens": chance.choice([1, 5, 50]), "stream": number % 2 == 0}
        if number % 4 == 0:
            assert (await proxy.post(body)).status == 200
            return
        client = await RawClient.send(proxy, body)
        await asyncio.sleep(chance.expovariate(1 / 0.02))
        await client.leave()

    async with simulated(connector, tmp_path) as (proxy, prefill, decode):
        await asyncio.gather(*(come_and_go(proxy, number) for number in range(REQUESTS)))
        stats = await proxy.settled()
        assert stats.failures == 0
        books = await decode.books()
        assert (books["held"], books["waiting"]) == (0, 0)
        assert (await prefill.books())["held"] == 0
        if connector is not Connector.EXAMPLE:
            assert books["received"] == REQUESTS == books["consumed"] + books["freed"]
