"""Engines that are admitted or lost, and invalid pings."""

import asyncio
import logging
import os
import socket
import time

import msgpack
import pytest
from aiohttp import web
from support.aio import until
from support.proxy import TEXT, Dealer, FakeEngine, RawClient, RunningProxy, running_proxy

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, PingType, encode_ping, sign_ping


async def test_a_ping_without_health_admits_nobody(proxy: RunningProxy) -> None:
    engine = await proxy.start(FakeEngine(Role.COMBINED, health=503))
    joining = await proxy.state_of(engine, "joining")
    assert (await proxy.post(TEXT)).status == 503
    engine.health = 200
    assert joining.name == (await proxy.state_of(engine, "ready")).name


async def test_a_ping_for_an_address_where_nobody_listens_admits_nobody(proxy: RunningProxy) -> None:
    ghost = FakeEngine(Role.COMBINED)
    async with Dealer(proxy.settings.proxy_port, ghost.zmq_address.encode()) as dealer:
        await dealer.send(encode_ping(ghost.ping()))
        await proxy.state_of(ghost, "joining")
        await asyncio.sleep(0.3)
        await dealer.send(encode_ping(ghost.ping()))
        assert "refuses" in (await proxy.state_of(ghost, "joining")).reason


async def test_vllms_own_ping_is_understood(proxy: RunningProxy) -> None:
    async with Dealer(proxy.settings.proxy_port, b"127.0.0.1:21001") as dealer:
        ping = {"type": "P", "http_address": "127.0.0.1:9", "zmq_address": "127.0.0.1:21001"}
        await dealer.send(msgpack.dumps(ping))
        (found,) = (await proxy.stats_where(lambda stats: stats.instances)).instances
    assert (found.name, found.connector) == ("prefill-0", Connector.P2P_NCCL)


async def test_an_engine_that_stops_pinging_is_lost_and_comes_back_through_health(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    engine.pings = False
    await proxy.state_of(engine, "lost")
    assert (await proxy.post(TEXT)).status == 503
    engine.health = 503
    engine.pings = True
    await proxy.state_of(engine, "joining")
    engine.health = 200
    assert (await proxy.state_of(engine, "ready")).name == "combined-0"


async def test_an_engine_whose_health_fails_gets_nothing_more(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    engine.health = 503
    assert "503" in (await proxy.state_of(engine, "joining")).reason


async def test_a_lost_engine_may_finish_what_it_has(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    engine.gate.clear()
    reply = asyncio.create_task(proxy.post(TEXT | {"stream": True}))
    engine.pings = False
    await proxy.state_of(engine, "lost")
    engine.gate.set()
    assert (await reply).events[-1] == "[DONE]"


async def test_another_boot_id_or_kv_port_is_another_process(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.DECODE)
    asked = engine.other_gets.count("/v1/models")
    engine.boot_id = "boot-2"
    await proxy.state_of(engine, "ready")
    assert engine.other_gets.count("/v1/models") == asked + 1, "it joined anew"
    engine.kv_port += 1
    await until(lambda: engine.other_gets.count("/v1/models") == asked + 2)
    assert [i.name for i in (await proxy.stats()).instances] == ["decode-0"]


async def test_models_are_asked_for_once(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    await until(lambda: engine.other_gets.count("/health") > 3)
    assert engine.other_gets.count("/v1/models") == 1


async def test_only_engines_of_the_configured_model_are_admitted() -> None:
    async with running_proxy(model="/models/right") as proxy:
        wrong = await proxy.start(FakeEngine(Role.COMBINED, models=["wrong"], boot_id="wrong"))
        await proxy.engine(Role.COMBINED, models=["right"], boot_id="right")
        assert "does not serve MODEL" in (await proxy.state_of(wrong, "joining")).reason


async def test_engines_with_different_connectors_or_models_make_no_pair(proxy: RunningProxy) -> None:
    await proxy.engine(Role.PREFILL, Connector.NIXL)
    await proxy.engine(Role.DECODE, Connector.P2P_NCCL, boot_id="a")
    await proxy.engine(Role.DECODE, Connector.NIXL, models=["other"], boot_id="b")
    assert (await proxy.get("/ready")).status == 503
    assert "same connector and model" in (await proxy.post({"prompt": "x"})).error["message"]


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        ([], "neither prefill and decode nor a combined one"),
        ([Role.PREFILL], "no decode engine is ready"),
        ([Role.DECODE], "no prefill engine is ready"),
    ],
)
async def test_without_engines_a_503_says_which_role_is_missing(
    proxy: RunningProxy, roles: list[Role], sentence: str
) -> None:
    for role in roles:
        await proxy.engine(role)
    reply = await proxy.post(TEXT)
    assert reply.status == 503
    assert sentence in reply.error["message"]
    assert int(reply.headers["Retry-After"]) > 0
    ready = await proxy.get("/ready")
    assert ready.status == 503


async def test_health_is_200_without_engines_and_models_is_503(proxy: RunningProxy) -> None:
    assert (await proxy.get("/health")).status == 200
    assert (await proxy.get("/v1/models")).status == 503
    assert (await proxy.get("/ready")).status == 503
    await proxy.engine(Role.COMBINED)
    assert (await proxy.get("/ready")).status == 200


GOOD = {"type": "D", "http_address": "127.0.0.1:9", "zmq_address": "h:1"}
HOSTILE = {
    "garbage": ([os.urandom(64)], "malformed"),
    "nothing": ([b""], "malformed"),
    "truncated": ([msgpack.dumps(GOOD)[:-3]], "malformed"),
    "no map": ([msgpack.dumps([1, 2])], "malformed"),
    "missing field": ([msgpack.dumps({"type": "D", "http_address": "a:1"})], "malformed"),
    "unknown type": ([msgpack.dumps(GOOD | {"type": "X"})], "malformed"),
    "bad port": ([msgpack.dumps(GOOD | {"http_address": "a:99999"})], "malformed"),
    "address with a path": ([msgpack.dumps(GOOD | {"http_address": "a:1/../x"})], "malformed"),
    "too long": ([msgpack.dumps(GOOD | {"model": "m" * 5000})], "malformed"),
    "deep": ([b"\x91" * 4000], "malformed"),
    "somebody else's identity": ([msgpack.dumps(GOOD | {"zmq_address": "h:2"})], "identity"),
    "many frames": ([msgpack.dumps(GOOD), b"x"], "frames"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_is_no_ping_is_counted_logged_once_and_does_nothing(
    proxy: RunningProxy, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames, reason = HOSTILE[kind]
    async with Dealer(proxy.settings.proxy_port, b"h:1") as dealer:
        for _ in range(3):
            await dealer.send_multipart(frames)
        stats = await proxy.stats_where(lambda stats: stats.rejected_pings == 3)
    assert stats.instances == []
    metrics = (await proxy.get("/metrics")).body.decode()
    assert f'pd_proxy_rejected_pings_total{{reason="{reason}"}} 3.0' in metrics
    logged = [record for record in caplog.records if record.name == "pd_proxy.discovery"]
    assert len(logged) == 1
    assert logged[0].levelno == logging.WARNING


async def test_two_live_engines_cannot_share_a_kv_address(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.DECODE)
    thief = FakeEngine(Role.DECODE)
    thief.kv_port = engine.kv_port
    async with Dealer(proxy.settings.proxy_port, thief.zmq_address.encode()) as dealer:
        await dealer.send(encode_ping(thief.ping()))
        stats = await proxy.stats_where(lambda stats: stats.rejected_pings)
    assert [i.name for i in stats.instances] == ["decode-0"]


async def test_bytes_that_are_not_zmq_do_no_harm(proxy: RunningProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.settings.proxy_port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(4096))
    await proxy.engine(Role.COMBINED)
    assert (await proxy.post(TEXT)).status == 200


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "nosuchhost.invalid", "0.0.0.0", "1.2.3.4.5"])
async def test_an_address_that_cannot_be_dialled_does_not_stop_the_health_checks(host: str) -> None:
    async with running_proxy(ping_key="key") as proxy, Dealer(proxy.settings.proxy_port, b"h:1") as dealer:
        await dealer.send(sign_ping(Ping(PingType.COMBINED, f"{host}:9", "h:1"), "key", time.time()))
        await proxy.stats_where(
            lambda stats: any("refuses" in i.reason or "broke" in i.reason for i in stats.instances)
        )
        await proxy.engine(Role.COMBINED)
        assert (await proxy.get("/health")).status == 200


async def test_a_health_check_is_not_led_elsewhere_or_flooded(proxy: RunningProxy) -> None:
    async def endless(_request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(_request)
        while True:
            await response.write(b"x" * 65536)

    async def elsewhere(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/v1/models")

    flooding = await proxy.start(FakeEngine(Role.COMBINED, boot_id="flood", health_answer=endless))
    leading = await proxy.start(FakeEngine(Role.COMBINED, boot_id="lead", health_answer=elsewhere))
    assert "answers with more than" in (await proxy.checked(flooding)).reason
    assert "302" in (await proxy.checked(leading)).reason


async def test_a_flood_of_pings_does_not_stop_the_proxy(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    async with Dealer(proxy.settings.proxy_port, b"flood:1") as dealer:

        async def flood() -> None:
            while True:
                await dealer.send(b"x" * 100)

        flooding = asyncio.create_task(flood())
        assert (await proxy.post(TEXT)).status == 200
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    assert (await proxy.state_of(engine, "ready")).name == "combined-0"


async def test_a_suspect_engine_that_falls_silent_stays_suspect_when_it_pings_again() -> None:
    async with running_proxy(decode_stall_timeout_s=0.3) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        client = await RawClient.send(proxy, TEXT | {"stream": True})
        await client.read_until(b"engine_stalled")
        engine.pings = False
        await proxy.state_of(engine, "lost")
        engine.pings = True
        await proxy.state_of(engine, "suspect")
        engine.gate.set()
        await proxy.state_of(engine, "ready")
