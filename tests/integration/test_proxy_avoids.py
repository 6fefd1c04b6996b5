"""An engine at which nothing moves gets no new request while there is another one."""

import asyncio
from typing import Any

import pytest
from support.proxy import STREAM, TEXT, FakeEngine, RawClient, RunningProxy, running_proxy

from pd_contracts.names import Connector, Role
from pd_routing.names import Routing

LIMIT_S = 0.3
ADAPTIVE = {"routing": Routing.ADAPTIVE, "ttft_slo_ms": 60_000.0, "tpot_slo_ms": 60_000.0, "step_profile": "slow-exact"}
ASKED = 8


async def until_avoided() -> None:
    """The requests that wait now have got nothing for longer than STANDSTILL_S."""
    await asyncio.sleep(2 * LIMIT_S)


async def all_answered(proxy: RunningProxy) -> bool:
    return all([(await proxy.post(TEXT)).status == 200 for _ in range(ASKED)])


@pytest.mark.parametrize("routing", [{}, ADAPTIVE], ids=["static", "adaptive"])
async def test_a_combined_engine_whose_streams_stand_still(routing: dict[str, Any]) -> None:
    async with running_proxy(standstill_s=LIMIT_S, **routing) as proxy:
        engines = [await proxy.engine(Role.COMBINED) for _ in range(2)]
        stuck, other = await one_that_hangs(proxy, engines)
        await until_avoided()
        asked = len(stuck.calls)
        assert await all_answered(proxy)
        assert len(stuck.calls) == asked
        assert other.calls
        stuck.gate.set()


@pytest.mark.parametrize("role", [Role.DECODE, Role.PREFILL])
async def test_one_of_two_decode_or_prefill_engines_at_which_nothing_moves(role: Role) -> None:
    async with running_proxy(standstill_s=LIMIT_S) as proxy:
        await proxy.engine(Role.PREFILL if role is Role.DECODE else Role.DECODE, Connector.P2P_NCCL)
        engines = [await proxy.engine(role, Connector.P2P_NCCL) for _ in range(2)]
        stuck, _ = await one_that_hangs(proxy, engines)
        await until_avoided()
        asked = len(stuck.calls)
        assert await all_answered(proxy)
        assert len(stuck.calls) == asked
        stuck.gate.set()


async def test_it_gets_requests_again_when_it_moves() -> None:
    async with running_proxy(standstill_s=LIMIT_S) as proxy:
        engines = [await proxy.engine(Role.COMBINED) for _ in range(2)]
        stuck, _ = await one_that_hangs(proxy, engines)
        await until_avoided()
        stuck.gate.set()
        await until_avoided()
        asked = len(stuck.calls)
        assert await all_answered(proxy)
        assert len(stuck.calls) == asked + ASKED // 2


async def test_the_only_engine_keeps_its_requests() -> None:
    async with running_proxy(standstill_s=LIMIT_S) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        first = await RawClient.send(proxy, STREAM)
        await until_avoided()
        later = asyncio.ensure_future(proxy.post(TEXT))
        await asyncio.sleep(LIMIT_S)
        engine.gate.set()
        assert (await later).status == 200
        assert b"error" not in await first.read_until(b"[DONE]")


async def one_that_hangs(proxy: RunningProxy, engines: list[FakeEngine]) -> tuple[FakeEngine, FakeEngine]:
    """Send streams until one waits at the engine that does not answer; returns that engine and the other one."""
    stuck, other = engines
    stuck.gate.clear()
    while not stuck.calls:
        await RawClient.send(proxy, STREAM)
        await asyncio.sleep(0.05)
    return stuck, other
