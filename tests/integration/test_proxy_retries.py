"""Requests that fail before their first byte are saved by other engines, and what they leave behind is consumed."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from support.aio import until
from support.proxy import (
    BODIES,
    STREAM,
    TEXT,
    Answer,
    Call,
    ClosesKept,
    FakeEngine,
    RawClient,
    RunningProxy,
    chunk,
    failing,
    generate,
    hang_up,
    running_proxy,
    start_stream,
)

from pd_contracts import timing
from pd_contracts.names import Connector, Role
from pd_proxy.kv.transfer import SHORT_PROMPT


async def several(proxy: RunningProxy, role: Role, count: int) -> list[FakeEngine]:
    return [await proxy.engine(role, boot_id=f"{role.value}-{number}") for number in range(count)]


def ids(engines: list[FakeEngine]) -> list[str]:
    """The ids of clients' requests, without what the proxy asks for its own sake."""
    return [call.engine_id for engine in engines for call in engine.calls if call.body.get("prompt") != SHORT_PROMPT]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (failing(500), "refused"),
        (failing(429), "refused"),
        (hang_up, "disconnected"),
        (failing(200, b"{broken"), "broken_reply"),
    ],
)
@BODIES
async def test_a_prefill_that_fails_is_replaced_and_decode_never_hears_of_it(
    proxy: RunningProxy, body: dict[str, Any], answer: Answer, cause: str
) -> None:
    # Only NIXL's prefill says something in its body that the proxy must understand.
    connector = Connector.NIXL if cause == "broken_reply" else Connector.P2P_NCCL
    broken = await proxy.engine(Role.PREFILL, connector, boot_id="broken")
    good = await proxy.engine(Role.PREFILL, connector, boot_id="good")
    decode = await proxy.engine(Role.DECODE, connector)
    broken.answer = answer
    for _ in range(4):
        assert (await proxy.post(body)).status == 200
    assert 1 <= len(ids([broken])) <= 4
    assert len(ids([good])) == 4
    assert ids([decode]) == ids([good])
    assert not set(ids([broken])) & set(ids([good]))
    stats = await proxy.stats()
    assert (stats.retries, stats.failures) == (len(ids([broken])), 0)
    metrics = (await proxy.get("/metrics")).body.decode()
    assert f'pd_proxy_retries_total{{cause="{cause}"}} {len(ids([broken]))}.0' in metrics


KEEPERS = [
    (Role.COMBINED, Connector.P2P_NCCL),
    (Role.PREFILL, Connector.P2P_NCCL),
    (Role.DECODE, Connector.P2P_NCCL),
    (Role.DECODE, Connector.NIXL),
    (Role.PREFILL, Connector.P2P),
    (Role.DECODE, Connector.P2P),
]


@pytest.mark.parametrize(("role", "connector"), KEEPERS)
@BODIES
async def test_a_kept_connection_that_the_only_engine_closes_under_a_request_costs_no_client_an_error(
    proxy: RunningProxy, body: dict[str, Any], role: Role, connector: Connector
) -> None:
    engines = [await proxy.engine(role)] if role is Role.COMBINED else await proxy.pair(connector)
    engine = next(engine for engine in engines if engine.role is role)
    engine.answer = answer = ClosesKept()
    for number in range(4):
        assert (await proxy.post(body)).status == 200
        assert not answer.closes
        assert (await proxy.stats()).retries == number
        await proxy.paid()  # a repayment must not be what meets the closed connection
        answer.closes = True
    stats = await proxy.stats()
    assert [(i.state, i.failures) for i in stats.instances] == [("ready", 0)] * len(stats.instances)
    engine.answer = None
    await proxy.paid()


@pytest.mark.parametrize("path", ["/tokenize", "/v1/embeddings"])
async def test_what_is_passed_on_is_sent_again_too(proxy: RunningProxy, path: str) -> None:
    engine = await proxy.engine(Role.COMBINED, answer=(answer := ClosesKept(failing(200, b"{}"))))
    for _ in range(4):
        assert (await proxy.post({"prompt": "a"}, path)).status == 200
        assert not answer.closes
        answer.closes = True
    engine.answer = hang_up
    assert (await proxy.post({"prompt": "a"}, path)).status == 502


@BODIES
async def test_a_prefill_that_is_too_slow_is_replaced_and_drained_when_it_is_done(body: dict[str, Any]) -> None:
    async with running_proxy(prefill_timeout_s=0.3) as proxy:
        slow, _ = await several(proxy, Role.PREFILL, 2)
        decodes = await several(proxy, Role.DECODE, 2)
        slow.gate.clear()
        replies = [await proxy.post(body) for _ in range(2)]
        assert [reply.status for reply in replies] == [200, 200]
        late = ids([slow])
        assert late
        assert not set(late) & set(ids(decodes))
        assert not any(call.aborted for call in slow.calls)
        slow.gate.set()
        await until(lambda: set(late) <= set(ids(decodes)))
        await proxy.settled()
        drains = [call for decode in decodes for call in decode.calls if call.engine_id in late]
        assert [call.body["max_tokens"] for call in drains] == [1] * len(late)


@pytest.mark.parametrize("answer", [failing(503), hang_up, failing(200, b"data: [DONE]\n\n")])
@BODIES
async def test_a_decode_that_fails_before_its_first_byte_is_replaced_with_a_new_prefill(
    proxy: RunningProxy, body: dict[str, Any], answer: Answer
) -> None:
    async def run_only_drains(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        return await (generate if call.body["max_tokens"] == 1 else answer)(engine, call, request)

    prefill = await proxy.engine(Role.PREFILL)
    broken, good = await several(proxy, Role.DECODE, 2)
    broken.answer = run_only_drains
    for _ in range(2):
        assert (await proxy.post(body)).status == 200
    await proxy.settled()
    asked = [call for call in broken.calls if call.body["max_tokens"] > 1]
    assert asked
    assert len(ids([good])) == 2
    assert len(set(ids([prefill]))) == len(ids([prefill])) == 2 + len(asked)
    assert set(ids([broken])) | set(ids([good])) == set(ids([prefill]))


async def test_nothing_is_tried_again_after_the_first_byte(proxy: RunningProxy) -> None:
    async def break_off(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk(call, "t0 "))
        await asyncio.sleep(0.05)  # so that the chunk is read before the end
        return response

    prefill = await proxy.engine(Role.PREFILL)
    decodes = await several(proxy, Role.DECODE, 2)
    for decode in decodes:
        decode.answer = break_off
    reply = await proxy.post(STREAM)
    assert "t0 " in reply.events[0]
    assert '"error"' in reply.events[-1]
    assert len(prefill.calls) == 1
    assert (await proxy.stats()).retries == 0


async def test_a_request_that_is_wrong_is_not_tried_again(proxy: RunningProxy) -> None:
    prefills = await several(proxy, Role.PREFILL, 2)
    await proxy.engine(Role.DECODE)
    for prefill in prefills:
        prefill.answer = failing(400, b'{"error":{"message":"too long"}}')
    assert (await proxy.post(TEXT)).status == 400
    assert len(ids(prefills)) == 1


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (1, 2), (2, 3)])
async def test_the_number_of_attempts_is_bounded(retries: int, asked: int) -> None:
    async with running_proxy(retries=retries) as proxy:
        prefills = await several(proxy, Role.PREFILL, 4)
        decode = await proxy.engine(Role.DECODE)
        for prefill in prefills:
            prefill.answer = failing(500)
        reply = await proxy.post(TEXT)
        assert reply.status == 502
        assert reply.error["code"] == "bad_gateway"
        assert len(set(ids(prefills))) == asked
        assert not decode.calls


@BODIES
async def test_a_request_is_tried_again_while_the_proxy_drains(body: dict[str, Any]) -> None:
    async def dies(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        await engine.gate.wait()
        return await hang_up(engine, call, request)

    async with running_proxy(drain_timeout_s=20.0) as proxy:
        broken, good = await several(proxy, Role.COMBINED, 2)
        for engine in (broken, good):
            engine.answer = dies
            engine.gate.clear()
        asked = asyncio.create_task(proxy.post(body))
        await until(lambda: broken.calls or good.calls)
        first, second = (broken, good) if broken.calls else (good, broken)
        proxy.shutdown.set()
        await asyncio.sleep(0.1)
        second.answer = None
        first.gate.set()
        second.gate.set()
        reply = await asked
        assert (reply.status, len(second.calls)) == (200, 1)


async def test_no_attempt_begins_after_the_budget() -> None:
    async with running_proxy(prefill_timeout_s=0.3, retry_budget_s=0.2) as proxy:
        prefills = await several(proxy, Role.PREFILL, 2)
        await proxy.engine(Role.DECODE)
        for prefill in prefills:
            prefill.gate.clear()
        assert (await proxy.post(TEXT)).status == 504
        assert len(ids(prefills)) == 1


async def test_a_combined_engine_saves_what_no_pair_can(proxy: RunningProxy) -> None:
    prefill, decode = await proxy.pair()
    combined = await proxy.engine(Role.COMBINED)
    prefill.answer = failing(500)
    assert (await proxy.post(TEXT)).status == 200
    assert not decode.calls
    assert "___prefill_addr_" not in combined.calls[0].engine_id


async def test_the_stages_name_the_engines_that_served_and_count_the_retries(proxy: RunningProxy) -> None:
    prefills = await several(proxy, Role.PREFILL, 2)
    await proxy.engine(Role.DECODE)
    asked: list[FakeEngine] = []

    async def fail_once(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        asked.append(engine)
        return await (failing(500) if len(asked) == 1 else generate)(engine, call, request)

    prefills[0].answer = prefills[1].answer = fail_once
    reply = await proxy.post(TEXT, **{"X-PD-Timing": "1"})
    stages = timing.decode(reply.headers["X-PD-Timing"])
    assert stages is not None
    assert stages.retries == 1
    assert stages.prefill_instance == f"prefill-{prefills.index(asked[1])}"
    assert stages.decode_instance == "decode-0"


async def test_a_client_that_leaves_while_it_is_tried_again_leaves_no_kv_behind(proxy: RunningProxy) -> None:
    prefills = await several(proxy, Role.PREFILL, 2)
    decode = await proxy.engine(Role.DECODE)
    prefills[0].answer = failing(500)
    prefills[1].gate.clear()
    client = await RawClient.send(proxy, STREAM)
    await until(lambda: prefills[1].calls)
    await client.leave()
    await asyncio.sleep(0.1)
    prefills[1].gate.set()
    await until(lambda: decode.calls and decode.calls[0].finished)
    await proxy.settled()
    assert ids([decode]) == ids([prefills[1]])
    assert (await proxy.stats()).drained == 1
