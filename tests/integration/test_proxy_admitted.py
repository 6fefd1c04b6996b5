"""Engines, and those that stop them, ask whether an engine is admitted, and have it drained before it stops."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.aio import until
from support.proxy import TEXT, FakeEngine, RawClient, RunningProxy, running_proxy

from pd_contracts.names import Connector, Role

KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(admin_key="secret") as proxy:
        yield proxy


@pytest.mark.parametrize("key", ["zmq_address", "http_address", "boot_id"])
async def test_an_engine_learns_whether_it_gets_requests(proxy: RunningProxy, key: str) -> None:
    engine = await proxy.engine(Role.DECODE, boot_id="boot-7")
    where = f"/admitted?{key}={getattr(engine, key)}"
    reply = await proxy.get(where)
    assert (reply.status, reply.json) == (
        200,
        {"admitted": True, "instance": "decode-0", "state": "ready", "reason": ""},
    )
    await proxy.post({}, "/admin/instances/decode-0/drain", **KEY)
    reply = await proxy.get(where)
    assert (reply.status, reply.json["admitted"], reply.json["state"]) == (503, False, "draining")
    assert "127.0.0.1" not in reply.body.decode()


async def test_an_engine_that_never_announced_itself_is_not_admitted(proxy: RunningProxy) -> None:
    reply = await proxy.get("/admitted?zmq_address=127.0.0.1:1")
    assert (reply.status, reply.json["state"], reply.json["instance"]) == (503, "unknown", "")
    assert "127.0.0.1" not in reply.body.decode()


@pytest.mark.parametrize("query", ["", "?name=decode-0", "?zmq_address=", "?boot_id=a&zmq_address=b"])
async def test_an_engine_is_named_by_one_thing(proxy: RunningProxy, query: str) -> None:
    assert (await proxy.get(f"/admitted{query}")).error["type"] == "invalid_request_error"


async def test_a_healthy_engine_without_a_pair_that_passed_its_canary_is_not_admitted() -> None:
    async with running_proxy(canary=True) as proxy:
        engine = await proxy.start(_decode())
        await proxy.checked(engine)
        reply = await proxy.get(f"/admitted?zmq_address={engine.zmq_address}")
        assert (reply.status, reply.json["state"]) == (503, "joining")
        assert "canary" in reply.json["reason"]


def _decode() -> FakeEngine:
    return FakeEngine(Role.DECODE, Connector.P2P_NCCL)


@pytest.mark.parametrize("key", ["zmq_address", "http_address", "boot_id"])
async def test_a_drain_waits_until_nothing_is_in_flight(proxy: RunningProxy, key: str) -> None:
    engine = await proxy.engine(Role.COMBINED, boot_id="boot-7")
    engine.gate.clear()
    request = asyncio.create_task(proxy.post(TEXT))
    await until(lambda: engine.calls)
    path = f"/admin/instances/{getattr(engine, key)}/drain"
    late = await proxy.post({}, f"{path}?wait_s=0.2", **KEY)
    assert late.json == {"instance": "combined-0", "state": "draining", "in_flight": 1, "drained": False}
    waiting = asyncio.create_task(proxy.post({}, f"{path}?wait_s=10", **KEY))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    engine.gate.set()
    assert (await waiting).json == {"instance": "combined-0", "state": "draining", "in_flight": 0, "drained": True}
    assert (await request).status == 200


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_a_drain_waits_for_kv_that_is_between_prefill_and_decode(proxy: RunningProxy, role: Role) -> None:
    prefill, decode = await proxy.pair()
    held = decode if role is Role.PREFILL else prefill  # the other one has the request now
    held.gate.clear()
    client = await RawClient.send(proxy, TEXT)
    await until(lambda: held.calls)
    path = f"/admin/instances/{role.value}-0/drain"
    assert (await proxy.post({}, f"{path}?wait_s=0.2", **KEY)).json["in_flight"] == 1
    held.gate.set()
    assert b" 200 " in await client.read_until(b"\r\n")
    assert (await proxy.post({}, f"{path}?wait_s=5", **KEY)).json["drained"] is True


@pytest.mark.parametrize("wait_s", ["soon", "-1", "nan", "inf", "3601"])
async def test_a_time_to_wait_is_a_number(proxy: RunningProxy, wait_s: str) -> None:
    await proxy.engine(Role.COMBINED)
    reply = await proxy.post({}, f"/admin/instances/combined-0/drain?wait_s={wait_s}", **KEY)
    assert (reply.status, reply.error["param"]) == (400, "wait_s")
    assert (await proxy.stats()).instances[0].state == "ready"
