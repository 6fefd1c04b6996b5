"""Untrusted senders that reach the port for pings can harm neither a live engine nor the proxy."""

import asyncio
import time
from typing import Any

import msgspec
import psutil
import pytest
import zmq
from aiohttp import web
from support.proxy import (
    MODEL,
    TEXT,
    Call,
    Dealer,
    FakeEngine,
    RawClient,
    RunningProxy,
    chunk,
    generate,
    running_proxy,
    start_stream,
)
from support.workers import running_workers

from pd_contracts import sse
from pd_contracts.names import Role
from pd_contracts.ping import Ping, PingType, encode_ping, sign_ping

KEY = "the deployment's key"
SIGNED: dict[str, Any] = {"ping_key": KEY, "deployment": "mine"}
STREAM = TEXT | {"stream": True}


async def say(proxy: RunningProxy, ping: Ping | bytes) -> None:
    """Send a ping as it is; it must be refused before this returns."""
    before = (await proxy.stats()).rejected_pings
    identity = ping.zmq_address if isinstance(ping, Ping) else "x:1"
    async with Dealer(proxy.settings.proxy_port, identity.encode()) as dealer:
        await dealer.send(ping if isinstance(ping, bytes) else encode_ping(ping))
        await proxy.stats_where(lambda stats: stats.rejected_pings > before)


async def slowly(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    """A stream of a token every 50 ms, for 2 s; anything else at once."""
    if not call.body.get("stream"):
        return await generate(_engine, call, request)
    response = await start_stream(request)
    for number in range(40):
        await response.write(chunk(call, f"t{number} "))
        await asyncio.sleep(0.05)
    await response.write(sse.encode_event(sse.DONE))
    return response


@pytest.mark.parametrize("how", ["unsigned", "keyed", "bare"])
async def test_a_stranger_cannot_take_a_live_engines_place(how: str) -> None:
    # An engine that a busy machine kept from pinging for half of the usual second would count as gone, and the stranger as its successor.
    async with running_proxy(**(SIGNED if how == "keyed" else {}), ping_ttl_s=60.0) as proxy:
        await proxy.engine(Role.PREFILL)
        decode = await proxy.engine(Role.DECODE, answer=slowly)
        stolen: dict[str, Any] = {"http_address": decode.http_address, "zmq_address": "127.0.0.1:9"}
        ping = Ping(PingType.DECODE, **stolen)
        if how == "unsigned":
            ping = msgspec.structs.replace(ping, connector=decode.connector, boot_id="stranger")
        client = await RawClient.send(proxy, STREAM)
        await client.read_until(b"t0 ")
        for _ in range(3):
            await say(proxy, ping)
        assert (await proxy.post(TEXT)).status == 200
        assert b"error" not in await client.read_until(b"[DONE]")


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("signed", [False, True])
async def test_a_stranger_with_a_live_engines_identity_is_not_heard_in_its_place(*, signed: bool, stays: bool) -> None:
    async with running_proxy(**(SIGNED if signed else {}), ping_ttl_s=0.5) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        before = (await proxy.stats()).rejected_pings
        async with Dealer(proxy.settings.proxy_port, engine.zmq_address.encode()) as thief:
            await thief.send(b"hello")
            await proxy.stats_where(lambda stats: stats.rejected_pings > before)
            if stays:
                await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert (await proxy.instance(engine)).state == "ready"  # type: ignore[union-attr]
        assert (await proxy.post(TEXT)).status == 200


async def test_a_strangers_ping_says_nothing_of_a_live_engines_role_or_boot_either() -> None:
    async with running_proxy() as proxy:
        engine = await proxy.engine(Role.COMBINED)
        own = engine.ping()
        changes: tuple[dict[str, Any], ...] = ({"type": PingType.PREFILL}, {"boot_id": "other"})
        for change in changes:
            await say(proxy, msgspec.structs.replace(own, **change))
        assert (await proxy.state_of(engine, "ready")).name == "combined-0"


async def test_an_engine_that_signs_nothing_and_was_started_again_is_another_one_once_the_old_one_is_silent() -> None:
    async with running_proxy() as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.boot_id = "boot-2"
        assert (await proxy.state_of(engine, "ready")).name == "combined-0"


async def test_a_signed_restart_is_believed_at_once_and_a_recorded_ping_never_again() -> None:
    async with running_proxy(**SIGNED, ping_ttl_s=60.0) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        recorded = engine.announcement()
        engine.boot_id = "boot-2"
        await proxy.state_of(engine, "ready")
        await say(proxy, recorded)
        assert (await proxy.state_of(engine, "ready")).boot_id == "boot-2"


async def test_a_signed_ping_takes_the_place_of_an_unsigned_one() -> None:
    async with running_proxy(**SIGNED, ping_ttl_s=60.0) as proxy:
        engine = FakeEngine(Role.COMBINED)
        squatter = Ping(PingType.DECODE, engine.http_address, engine.zmq_address)
        other = Ping(PingType.DECODE, "127.0.0.1:9", engine.zmq_address)
        for ping in (squatter, other):
            async with Dealer(proxy.settings.proxy_port, ping.zmq_address.encode()) as dealer:
                await dealer.send(encode_ping(ping))
                await proxy.stats_where(lambda stats: stats.instances or stats.rejected_pings)
        await proxy.start(engine)
        await proxy.state_of(engine, "ready")
        assert [i.role for i in (await proxy.stats()).instances] == [Role.COMBINED]


@pytest.mark.parametrize(
    ("told", "engine"),
    [
        (SIGNED, {"key": "another", "deployment": "mine"}),
        (SIGNED, {"key": KEY, "deployment": "another"}),
        ({"deployment": "mine"}, {"deployment": "another"}),
        (SIGNED | {"unsigned_pings": False}, {"bare": True}),
        ({}, {"deployment": "another"}),
    ],
)
async def test_engines_of_another_deployment_are_not_admitted(told: dict[str, Any], engine: dict[str, Any]) -> None:
    async with running_proxy(**told) as proxy:
        stray = FakeEngine(Role.COMBINED, None, **engine)
        await proxy.engines.enter_async_context(stray.running(proxy.settings.proxy_port))
        await proxy.stats_where(lambda stats: stats.rejected_pings > 2)
        assert (await proxy.stats()).instances == []
        own = await proxy.engine(Role.COMBINED, key=KEY if "ping_key" in told else "")
        assert own.calls == stray.calls == []
        assert (await proxy.post(TEXT)).status == 200
        assert stray.calls == []


async def test_vllms_own_pings_are_believed_beside_signed_ones() -> None:
    async with running_proxy(**SIGNED) as proxy:
        await proxy.engine(Role.PREFILL)
        await proxy.start(FakeEngine(Role.DECODE, bare=True, key="", deployment="mine", boot_id=""))
        stats = await proxy.stats_where(lambda stats: sum(i.state == "ready" for i in stats.instances) == 2)
        assert {i.name for i in stats.instances} == {"prefill-0", "decode-0"}


async def test_invented_engines_fill_no_table() -> None:
    async with running_proxy() as proxy:
        with zmq.Context() as context:
            for number in range(200):
                kv = f"127.0.0.1:{20000 + number}"
                with context.socket(zmq.DEALER) as dealer:
                    dealer.setsockopt(zmq.IDENTITY, kv.encode())
                    dealer.connect(f"tcp://127.0.0.1:{proxy.settings.proxy_port}")
                    dealer.send(encode_ping(Ping(PingType.DECODE, f"127.0.0.1:{number + 2}", kv)))
                await asyncio.sleep(0)
        await proxy.stats_where(lambda stats: len(stats.instances) > 50)
        assert len((await proxy.stats()).instances) <= 64
        await proxy.engine(Role.COMBINED)
        assert (await proxy.post(TEXT)).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "127.1.2.3", "localhost"])
@pytest.mark.parametrize("port", ["http_proxy_port", "proxy_port"])
async def test_the_proxys_own_address_is_no_engine(host: str, port: str) -> None:
    async with running_proxy(**SIGNED, bind_host="0.0.0.0") as proxy:
        address = f"{host}:{getattr(proxy.settings, port)}"
        ping = Ping(PingType.COMBINED, address, "127.0.0.1:9", deployment="mine")
        await say(proxy, sign_ping(ping, KEY, time.time()))
        assert (await proxy.stats()).instances == []


async def test_another_proxy_is_no_engine_either() -> None:
    async with running_proxy() as other, running_proxy() as proxy:
        await other.engine(Role.COMBINED)
        files = psutil.Process().num_fds()
        ping = Ping(PingType.COMBINED, f"127.0.0.1:{other.settings.http_proxy_port}", "127.0.0.1:9")
        async with Dealer(proxy.settings.proxy_port, b"127.0.0.1:9") as dealer:
            await dealer.send(encode_ping(ping))
            found = await proxy.stats_where(lambda stats: any("proxy" in i.reason for i in stats.instances))
        assert found.instances[0].state == "joining"
        assert psutil.Process().num_fds() < files + 100, "the two do not ask each other without end"
        assert (await proxy.post(TEXT)).status == 503


# --- models ------------------------------------------------------------------------------------------------------------------


async def test_an_adapter_that_was_loaded_is_found_when_somebody_asks_for_it() -> None:
    async with running_proxy(models_interval_s=600.0) as proxy:
        engines = await proxy.pair()
        for engine in engines:
            engine.adapters.append("adapter")
        assert (await proxy.post(TEXT | {"model": "adapter"})).status == 200
        assert [m["id"] for m in (await proxy.get("/v1/models")).json["data"]] == [MODEL, "adapter"]


async def test_workers_find_a_loaded_adapter_too() -> None:
    async with running_workers(models_interval_s=600.0) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.adapters.append("adapter")
        replies = await asyncio.gather(*(proxy.post(TEXT | {"model": "adapter"}) for _ in range(14)))
        assert {reply.status for reply in replies} == {200}


async def test_an_adapter_that_was_unloaded_is_no_longer_listed() -> None:
    async with running_proxy(models_interval_s=0.2) as proxy:
        engine = await proxy.engine(Role.COMBINED, adapters=["adapter"])
        assert (await proxy.post(TEXT | {"model": "adapter"})).status == 200
        engine.adapters.clear()
        async with asyncio.timeout(30):
            while len((await proxy.get("/v1/models")).json["data"]) > 1:  # noqa: ASYNC110  nothing tells when it was asked
                await asyncio.sleep(0.05)
        assert (await proxy.post(TEXT | {"model": "adapter"})).status == 404


async def test_models_that_do_not_exist_are_404_and_ask_engines_no_more_than_once_a_second() -> None:
    async with running_proxy(models_interval_s=600.0) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        asked = engine.other_gets.count("/v1/models")
        replies = [await proxy.post(TEXT | {"model": f"none-{number}"}) for number in range(20)]
        assert {reply.status for reply in replies} == {404}
        assert engine.other_gets.count("/v1/models") <= asked + 2


async def test_another_model_under_the_same_address_is_another_engine_though_its_pings_do_not_say_so() -> None:
    async with running_proxy(models_interval_s=0.2) as proxy:
        engine = await proxy.engine(Role.COMBINED, bare=True, boot_id="")
        engine.models = ["another"]
        async with asyncio.timeout(30):
            while (await proxy.post(TEXT | {"model": "another"})).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await proxy.post(TEXT)).status == 404
        assert (await proxy.stats()).instances[0].model == "another"


# --- life --------------------------------------------------------------------------------------------------------------------


async def test_a_decode_whose_health_is_late_while_its_streams_flow_stays() -> None:
    async with running_proxy(health_timeout_s=0.1, health_failures=2) as proxy:
        await proxy.engine(Role.PREFILL)
        decode = await proxy.engine(Role.DECODE, answer=slowly)
        late = asyncio.Event()

        async def hang(_request: object) -> Any:
            late.set()
            await asyncio.sleep(10)

        decode.health_answer = hang
        client = await RawClient.send(proxy, STREAM)
        await late.wait()
        for _ in range(8):
            assert (await proxy.instance(decode)).state == "ready"  # type: ignore[union-attr]
            await asyncio.sleep(0.15)
        assert b"error" not in await client.read_until(b"[DONE]")
        await proxy.state_of(decode, "joining")


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_an_engine_whose_clock_or_the_proxys_jumps_by_an_hour_stays(jump: float) -> None:
    async with running_proxy(ping_key="k" * 32) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.clock = jump
        await asyncio.sleep(2.5 * proxy.settings.ping_ttl_s)
        assert (await proxy.post(TEXT)).status == 200
        engine.clock = 0.0
        await asyncio.sleep(1.5 * proxy.settings.ping_ttl_s)
        assert (await proxy.post(TEXT)).status == 200
        assert (await proxy.stats()).instances[0].name == "combined-0"


@pytest.mark.parametrize("jump", [-30.0, -3600.0])
async def test_an_engine_that_was_restarted_after_its_clock_was_set_back_is_admitted(jump: float) -> None:
    async with running_proxy(ping_key="k" * 32) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.clock, engine.boot_id = jump, "after the restart"
        found = await proxy.stats_where(lambda stats: stats.instances[0].boot_id == engine.boot_id)
        assert found.rejected_pings > 0, "as long as the process before it may be alive"
        await proxy.state_of(engine, "ready")
        assert (await proxy.post(TEXT)).status == 200
