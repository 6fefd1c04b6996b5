"""KV as the simulators count it: whenever clients leave, everything that prefill pushed is consumed, and no request waits for more."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.crowd import MANNERS, Crowd
from support.proxy import RawClient, RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for

from pd_contracts.names import Connector, Role

REQUESTS = 60
CLIENTS = 4_000
LEASE_S = 3.0  # P2pConnector gives back what nobody asked for after that long; longer than a busy machine freezes


@contextlib.asynccontextmanager
async def simulated(
    connector: Connector, shared: Path, **fields: float
) -> AsyncIterator[tuple[RunningProxy, Simulator, Simulator]]:
    """A proxy with a simulated prefill and decode."""
    async with contextlib.AsyncExitStack() as stack:
        # real pings come every 3 s
        proxy = await stack.enter_async_context(running_proxy(ping_ttl_s=10.0, **fields))
        engines = [
            await stack.enter_async_context(
                running(
                    settings_for(
                        role,
                        kv_connector=connector,
                        kv_load_timeout_s=1.0,
                        **({"kv_lease_s": LEASE_S} if connector is Connector.P2P else {}),
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
        async with asyncio.timeout(20):
            while (books := await decode.books())["held"] + books["waiting"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await prefill.books())["held"] == 0
        if connector is not Connector.EXAMPLE:
            # A client may be gone before its prompt was prefilled, and repayment sends KV of its own: what came must be used up.
            assert books["received"] == books["consumed"] + books["freed"]
            # P2pConnector's prefill is ended with its client, and answers of one token need no KV.
            assert books["received"] >= (1 if connector is Connector.P2P else REQUESTS // 2)


async def test_a_decode_that_loses_kv_for_long_recovers_when_it_no_longer_does(tmp_path: Path) -> None:
    async with simulated(Connector.P2P_NCCL, tmp_path, decode_stall_timeout_s=0.3, give_up_s=2.0) as (proxy, _, decode):
        await decode.post("/sim/faults", {"drop_kv": True})
        body = {"prompt": list(range(40)), "max_tokens": 2, "stream": True}
        assert [(await proxy.post(body)).status for _ in range(2)] == [504, 503]
        await asyncio.sleep(
            2.0
        )  # what probes and repayments push is lost as well, and one of them may be waited for now
        await decode.post("/sim/faults", {})
        await proxy.stats_where(lambda stats: all(i.state == "ready" for i in stats.instances), 20.0)
        assert (await proxy.post(body)).status == 200
        async with asyncio.timeout(20):
            while (books := await decode.books())["held"] + books["waiting"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("connector", "clients"),
    [(Connector.P2P, CLIENTS), (Connector.P2P_NCCL, CLIENTS // 4), (Connector.NIXL, CLIENTS // 4)],
)
async def test_thousands_of_clients_that_leave_at_any_stage_leave_nothing(
    connector: Connector, clients: int, tmp_path: Path
) -> None:
    """`make soak` does the same with faults."""
    async with simulated(connector, tmp_path) as (proxy, prefill, decode):
        model = (await proxy.get("/v1/models")).json["data"][0]["id"]
        rude = {manner: often for manner, often in MANNERS.items() if manner != "stays"}
        crowd = Crowd(proxy.settings.http_proxy_port, seed=5, patience_s=30.0, model=model, manners=rude)
        left = iter(range(clients))

        async def one_after_the_other() -> None:
            for _ in left:
                await crowd.one()

        await crowd.learn(proxy.session)
        await asyncio.gather(*(one_after_the_other() for _ in range(40)))
        stats = await proxy.settled()
        tally = crowd.tally
        assert (tally.stuck, tally.broken, tally.wrong) == ([], [], [])
        assert tally.outcomes["left"] > clients * 0.8
        assert (sum(tally.outcomes.values()), stats.failures) == (clients, 0)
        await proxy.stats_where(lambda stats: not stats.in_flight)
        async with asyncio.timeout(20):
            while (books := await decode.books())["held"] + books["waiting"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            while (sent := await prefill.books())["held"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert books["received"] == books["consumed"] + books["freed"]
        # Except with stock P2pNccl, what prefill sends when decode's client has left is never taken.
        assert (
            sent["sent"] == books["received"] if connector is Connector.P2P_NCCL else sent["sent"] >= books["received"]
        )
        assert b"pd_proxy_kv_owed 0.0" in (await proxy.get("/metrics")).body
