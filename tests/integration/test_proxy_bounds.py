"""Limits on concurrent requests and KV, the errors above them, and slow clients."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web
from support.aio import until
from support.proxy import MODEL, Call, FakeEngine, RawClient, chunk, running_proxy, start_stream

from pd_contracts.names import Role
from pd_proxy.protocol import generation, rewrite
from pd_proxy.request import serving

TEXT = {"model": MODEL, "prompt": [1] * 100, "max_tokens": 4}
STREAM = TEXT | {"stream": True}
KV = {"kv_bytes_per_token": 10, "kv_in_flight_bytes": 1500}  # room for one of these prompts at each decode, not for two


async def test_requests_past_the_bound_get_429_and_can_come_back() -> None:
    async with running_proxy(max_in_flight=2) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        engine.gate.clear()
        running = [asyncio.create_task(proxy.post(TEXT)) for _ in range(2)]
        await until(lambda: len(engine.calls) == 2)
        reply = await proxy.post(TEXT)
        assert (reply.status, reply.error["code"]) == (429, "too_many_requests")
        assert int(reply.headers["Retry-After"]) > 0
        engine.gate.set()
        assert [(await one).status for one in running] == [200, 200]
        assert (await proxy.post(TEXT)).status == 200
        assert len(engine.calls) == 3


async def test_kv_waits_until_its_decode_has_room() -> None:
    async with running_proxy(**KV) as proxy:
        prefill, decode = await proxy.pair()
        decode.gate.clear()
        first = asyncio.create_task(proxy.post(TEXT))
        await until(lambda: decode.calls)
        second = asyncio.create_task(proxy.post(TEXT))
        await asyncio.sleep(0.2)
        assert len(prefill.calls) == 1
        assert {i.name: i.kv_bytes for i in (await proxy.stats()).instances} == {"prefill-0": 0, "decode-0": 1000}
        metrics = (await proxy.get("/metrics")).body.decode()
        assert 'pd_proxy_kv_in_flight_bytes{instance="decode-0"} 1000.0' in metrics
        decode.gate.set()
        assert (await first).status == (await second).status == 200
        assert {i.kv_bytes for i in (await proxy.stats()).instances} == {0}


async def test_a_fault_of_the_proxy_keeps_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any) -> None:
        raise RuntimeError("a fault of the proxy")

    async with running_proxy(**KV) as proxy:
        await proxy.pair()
        monkeypatch.setattr(rewrite, "checked", faulty)
        assert (await proxy.post(TEXT)).status == 500
        assert {i.kv_bytes for i in (await proxy.settled()).instances} == {0}


async def test_kv_goes_to_the_decode_that_has_room() -> None:
    async with running_proxy(**KV) as proxy:
        await proxy.engine(Role.PREFILL)
        decodes = [await proxy.engine(Role.DECODE, boot_id=f"boot-{number}") for number in range(2)]
        for decode in decodes:
            decode.gate.clear()
        replies = [asyncio.create_task(proxy.post(TEXT)) for _ in range(2)]
        await until(lambda: all(decode.calls for decode in decodes))
        for decode in decodes:
            decode.gate.set()
        assert [(await reply).status for reply in replies] == [200, 200]


async def test_what_waits_too_long_gets_503_and_no_engine_hears_of_it() -> None:
    async with running_proxy(**KV, queue_timeout_s=0.2) as proxy:
        prefill, decode = await proxy.pair()
        decode.gate.clear()
        first = asyncio.create_task(proxy.post(TEXT))
        await until(lambda: decode.calls)
        reply = await proxy.post(TEXT)
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert int(reply.headers["Retry-After"]) > 0
        assert len(prefill.calls) == 1
        decode.gate.set()
        assert (await first).status == 200


async def test_a_prompt_larger_than_the_bound_goes_alone() -> None:
    async with running_proxy(**KV) as proxy:
        await proxy.pair()
        assert (await proxy.post(TEXT | {"prompt": [1] * 1000})).status == 200


async def test_streams_hold_room_only_until_their_first_byte() -> None:
    async with running_proxy(**KV) as proxy:
        _, decode = await proxy.pair()
        stream = await RawClient.send(proxy, STREAM | {"max_tokens": 1000000})
        await stream.read_until(b"t0 ")
        assert (await proxy.post(TEXT)).status == 200
        assert len(decode.calls) == 2


@pytest.mark.parametrize("fails", [True, False], ids=["prefill fails", "the client leaves"])
async def test_room_is_given_back_by_requests_that_come_to_nothing(fails: bool) -> None:
    async with running_proxy(**KV) as proxy:
        prefill, _ = await proxy.pair()
        prefill.gate.clear()
        client = await RawClient.send(proxy, TEXT)
        await until(lambda: prefill.calls)
        assert max(i.kv_bytes for i in (await proxy.stats()).instances) == 1000
        if fails:
            prefill.boot_id = "boot-2"
        else:
            await client.leave()
            await asyncio.sleep(0.05)
            assert max(i.kv_bytes for i in (await proxy.stats()).instances) == 1000, "it is still on its way"
        prefill.gate.set()
        await proxy.stats_where(lambda stats: not any(i.kv_bytes for i in stats.instances))


async def test_a_client_that_takes_nothing_is_ended_and_does_not_count_as_a_failure() -> None:
    async def flood(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        while True:
            await response.write(chunk(call, "x" * 100_000))

    async with running_proxy(client_stall_timeout_s=0.4) as proxy:
        engine = await proxy.engine(Role.COMBINED, answer=flood)
        client = await RawClient.send(proxy, STREAM, buffer_bytes=1024)
        await until(lambda: engine.calls and engine.calls[0].aborted)
        await client.leave()
        stats = await proxy.settled()
        assert stats.failures == 0


async def test_a_slow_stream_is_not_a_slow_client() -> None:
    async def trickle(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        for number in range(2):
            await response.write(chunk(call, f"t{number} "))
            await asyncio.sleep(0.6)
        await response.write(b"data: [DONE]\n\n")
        return response

    async with running_proxy(client_stall_timeout_s=0.2) as proxy:
        await proxy.engine(Role.COMBINED, answer=trickle)
        assert (await proxy.post(STREAM)).events[-1] == "[DONE]"


async def test_large_bodies_are_parsed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def slowly(*given: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.1)
        running -= 1
        return generation.parse(*given)

    monkeypatch.setattr(serving, "parse", slowly)
    async with running_proxy() as proxy:
        await proxy.engine(Role.COMBINED)
        large = TEXT | {"prompt": "x" * 2 * serving.AT_ONCE_BYTES}
        replies = await asyncio.gather(*(proxy.post(large) for _ in range(4)))
        assert [reply.status for reply in replies] == [200] * 4
    assert most == 1
