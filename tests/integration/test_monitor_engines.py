"""A recording has the engines' token counters: of a simulator that serves meanwhile, and of pages that do not answer."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.monitor import Client, recorded, running
from support.simulator import Simulator, fast_profile, settings_for
from support.simulator import running as engine_running

from pd_contracts.names import Role
from pd_contracts.records import EngineTokens
from pd_monitor.backends.boards import SimulatedBoards
from pd_monitor.backends.waves import WaveBoards
from pd_monitor.settings import Settings


@pytest.fixture(name="engine")
async def _engine() -> AsyncIterator[Simulator]:
    async with engine_running(settings_for(), fast_profile()) as engine:
        yield engine


async def start(client: Client) -> str:
    async with client.post("/recordings", json={"name": "tokens", "interval_s": 0.05}) as answer:
        return str((await answer.json())["id"])


async def fetch(client: Client, id_: str) -> list[EngineTokens]:
    async with client.delete(f"/recordings/{id_}") as answer:
        _, samples = recorded(await answer.read())
    return [tokens for sample in samples for tokens in sample.engines]


async def test_a_recording_counts_the_tokens_that_were_served_meanwhile(engine: Simulator) -> None:
    await engine.complete([7] * 30, max_tokens=4)
    boards = SimulatedBoards([f"{engine.url}/sim/board"])
    async with running(boards, Settings(monitor_interval_s=0.05, engine_metrics_interval_s=0.1)) as (client, _):
        id_ = await start(client)
        await asyncio.gather(*(engine.complete([number] * 50, max_tokens=6) for number in range(1, 4)))
        await asyncio.sleep(0.3)
        readings = await fetch(client, id_)

    first, last = readings[0], readings[-1]
    assert len(readings) >= 3  # at the start, in between, at the end
    assert {(tokens.name, tokens.role, tokens.error) for tokens in readings} == {("combined-0", Role.COMBINED, "")}
    assert first.prompt == 30.0
    assert (last.prompt or 0) - (first.prompt or 0) == 150.0
    assert (last.computed or 0) - (first.computed or 0) == 150.0
    assert (last.output or 0) - (first.output or 0) == 18.0
    assert last.cache_hits == 0.0
    assert all(a.t < b.t for a, b in itertools.pairwise(readings))


async def test_an_engine_that_does_not_answer_is_named_and_holds_nothing_up(engine: Simulator) -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/metrics", broken)
    async with TestServer(app) as server:
        pages = (
            f"decode={engine.url}/metrics",
            f"decode={server.make_url('/metrics')}",
            "prefill=http://127.0.0.1:1/metrics",
        )
        settings = Settings(monitor_interval_s=0.05, engine_metrics=pages)
        async with running(WaveBoards([0]), settings) as (client, _), asyncio.timeout(20):
            readings = await fetch(client, await start(client))

    by_name = {tokens.name: tokens for tokens in readings}
    assert by_name["decode-0"].prompt == 0.0
    assert (by_name["decode-1"].error, by_name["decode-1"].prompt) == ("status 503", None)
    assert "prefill-0" in by_name
    assert by_name["prefill-0"].error


async def test_engines_are_asked_nothing_while_nothing_is_recorded() -> None:
    asked = 0

    async def page(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text="vllm:prompt_tokens_total 1\n")

    app = web.Application()
    app.router.add_get("/metrics", page)
    async with TestServer(app) as server:
        settings = Settings(
            monitor_interval_s=0.05,
            engine_metrics=(f"decode={server.make_url('/metrics')}",),
            engine_metrics_interval_s=0.1,
        )
        async with running(WaveBoards([0]), settings) as (client, _):
            await asyncio.sleep(0.3)
            before = asked
            readings = await fetch(client, await start(client))
            await asyncio.sleep(0.3)
            during = asked
            await asyncio.sleep(0.3)

    assert before == 0
    assert len(readings) >= 2  # at the start and at the end; one more may have been under way when the recording ended
    assert during - len(readings) in (0, 1)
    assert asked == during
