"""`/v1/responses` through a proxy to simulated engines: the same text as from plain vLLM, nothing stored, and no KV left behind."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from support.aio import until
from support.deployments import EXTERNAL, Deployment, deployed, nothing_is_left
from support.proxy import (
    MODEL,
    Call,
    FakeEngine,
    RawClient,
    Reply,
    generate,
    has_number,
    opening,
    running_proxy,
    start_stream,
)

from pd_contracts import sse, timing
from pd_contracts.names import Connector, Role

PATH = "/v1/responses"
RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")
CONNECTORS = pytest.mark.parametrize("connector", list(Connector))
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
LAST = ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.fixture(name="connector")
def _connector() -> Connector:
    return Connector.P2P_NCCL


@pytest.fixture(name="deployment")
async def _deployment(connector: Connector, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(connector, tmp_path) as deployment:
        yield deployment


def asked(words: int = 40, **fields: Any) -> dict[str, Any]:
    """A request whose answer says its token ids."""
    text = " ".join(f"lamp {number}" for number in range(words))
    return {
        "input": text,
        "max_output_tokens": 6,
        "ignore_eos": True,
        "enable_response_messages": True,
        **fields,
    }


def kinds(reply: Reply) -> list[str]:
    """The events' names, which are their types, too."""
    events = [item for item in reply.items if isinstance(item, sse.Event)]
    assert all(json.loads(event.data)["type"] == event.name for event in events)
    return [event.name for event in events]


def response_of(reply: Reply) -> dict[str, Any]:
    """The response, streamed or not; a stream must be whole and say the same all through."""
    assert reply.status == 200, reply.body
    response: dict[str, Any]
    if reply.headers["Content-Type"] == "application/json":
        response = reply.json
        return response
    events = [json.loads(event) for event in reply.events]
    assert kinds(reply)[:2] == ["response.created", "response.in_progress"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    written = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert written == response["output"][0]["content"][0]["text"]
    assert {event["response"]["id"] for event in events if "response" in event} == {response["id"]}
    return response


def said(response: dict[str, Any]) -> tuple[str, list[int], list[int], str, int]:
    """What must not depend on who served it: text, tokens written and read, status, tokens as counted."""
    return (
        response["output"][0]["content"][0]["text"],
        response["output_messages"][0]["tokens"],
        response["input_messages"][0]["tokens"],
        response["status"],
        response["usage"]["total_tokens"],
    )


@CONNECTORS
@STREAMS
@pytest.mark.parametrize("words", [1, 60])
async def test_a_pair_writes_what_a_plain_engine_writes(deployment: Deployment, words: int, *, stream: bool) -> None:
    prefill, decode = await deployment.pair()
    body = asked(words, stream=stream, instructions="be brief")
    plain = (await deployment.plain.post(PATH, body | {"stream": False})).body
    reply = await deployment.proxy.post(body, PATH)
    assert said(response_of(reply)) == said(plain)
    if words > 1:
        assert await decode.metric(EXTERNAL) > 0, "decode must not have computed it all again"
    await nothing_is_left(prefill, decode)


@CONNECTORS
@STREAMS
async def test_the_id_is_the_apis_own_and_nothing_names_an_address(deployment: Deployment, *, stream: bool) -> None:
    prefill, _ = await deployment.pair()
    reply = await deployment.proxy.post(asked(stream=stream), PATH)
    response = response_of(reply)
    assert RESPONSE_ID.fullmatch(response["id"])
    assert reply.headers["X-Request-Id"] == response["id"]
    for secret in ("127.0.0.1", "_addr_", "kv_transfer_params"):
        assert secret not in reply.body.decode()
    assert not has_number(reply.body.decode(), prefill.settings.kv_port)


@STREAMS
async def test_the_openai_client_reads_it(deployment: Deployment, *, stream: bool) -> None:
    await deployment.pair()
    client = openai.AsyncOpenAI(base_url=f"{deployment.proxy.url}/v1", api_key="none", max_retries=0)
    async with client:
        if stream:
            async with client.responses.stream(
                model="sim-llama3-8b", input="who lit the lamp?", max_output_tokens=5
            ) as events:
                deltas = [event.delta async for event in events if event.type == "response.output_text.delta"]
                text = (await events.get_final_response()).output_text
            assert "".join(deltas) == text
        else:
            text = (
                await client.responses.create(model="sim-llama3-8b", input="who lit the lamp?", max_output_tokens=5)
            ).output_text
        assert len(text.split()) == 5


async def test_a_combined_engine_gets_the_request_and_its_id(deployment: Deployment) -> None:
    await deployment.engine(Role.COMBINED)
    reply = await deployment.proxy.post(asked(stream=True), PATH)
    assert said(response_of(reply)) == said((await deployment.plain.post(PATH, asked())).body)
    assert response_of(reply)["id"] == reply.headers["X-Request-Id"]


@pytest.mark.parametrize("fields", [{"background": True}, {"previous_response_id": "resp_1"}])
async def test_what_needs_a_stored_response_is_refused_with_the_reason(
    deployment: Deployment, fields: dict[str, Any]
) -> None:
    engine = await deployment.engine(Role.COMBINED)
    reply = await deployment.proxy.post(asked(**fields), PATH)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (
        400,
        next(iter(fields)),
        "responses_not_stored",
    )
    assert "responses are not stored here" in reply.error["message"]
    assert await engine.metric("vllm:prompt_tokens_total") == 0


async def test_a_stored_response_is_never_found(deployment: Deployment) -> None:
    proxy = deployment.proxy
    found = [
        await proxy.get(f"{PATH}/resp_1"),
        await proxy.get(f"{PATH}/resp_1?stream=true"),
        await proxy.post({}, f"{PATH}/resp_1/cancel"),
    ]
    async with proxy.session.delete(f"{proxy.url}{PATH}/resp_1") as response:
        found.append(Reply(response.status, response.headers.copy(), await response.read()))
    for reply in found:
        assert (reply.status, reply.error["param"]) == (404, "response_id")
        assert "responses are not stored here" in reply.error["message"]


async def test_tools_that_the_engine_runs_go_to_a_combined_engine_or_nowhere(deployment: Deployment) -> None:
    prefill, _ = await deployment.pair()
    body = asked(tools=[{"type": "web_search_preview"}])
    refused = await deployment.proxy.post(body, PATH)
    assert (refused.status, refused.error["code"]) == (400, "not_disaggregable")
    assert "web_search_preview" in refused.error["message"]
    await deployment.engine(Role.COMBINED)
    assert (await deployment.proxy.post(body, PATH)).status == 200
    assert await prefill.metric("vllm:prompt_tokens_total") == 0


async def test_timing_comes_right_before_the_last_event(deployment: Deployment) -> None:
    await deployment.pair()
    reply = await deployment.proxy.post(asked(stream=True), PATH, **{"X-PD-Timing": "1"})
    comment, last = reply.items[-2:]
    assert isinstance(last, sse.Event)
    assert last.name == "response.completed"
    assert isinstance(comment, sse.Comment)
    stages = timing.decode(comment.text)
    assert stages is not None
    assert (stages.prefill_instance, stages.decode_instance) == ("prefill-0", "decode-0")


async def test_a_stream_is_the_same_through_the_other_server(deployment: Deployment) -> None:
    await deployment.pair()
    proxy, body = deployment.proxy, json.dumps(asked(stream=True)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body  # without a length, which only Hypercorn reads

    async with proxy.session.post(proxy.url + PATH, data=pieces()) as response:
        other = Reply(response.status, response.headers.copy(), await response.read())
    assert said(response_of(other)) == said(response_of(await proxy.post(body, PATH)))


async def test_a_stream_whose_engine_dies_ends_with_this_apis_error_event(deployment: Deployment) -> None:
    _, decode = await deployment.pair()
    assert (await decode.post("/sim/faults", {"die_mid_stream": True})).status == 200
    reply = await deployment.proxy.post(asked(stream=True), PATH)
    assert reply.status == 200
    assert kinds(reply)[:2] == ["response.created", "response.in_progress"]
    assert "response.output_text.delta" in kinds(reply)
    assert [kind for kind in kinds(reply) if kind in LAST] == ["error"]
    events = [json.loads(event) for event in reply.events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert set(events[-1]) == {"type", "code", "message", "param", "sequence_number"}
    assert "decode-0" in events[-1]["message"]
    assert b"127.0.0.1" not in reply.body
    assert 'cause="disconnected"' in (await deployment.proxy.get("/metrics")).body.decode()


@STREAMS
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize("fault", [{"refuse": True}, {"status": 500}])
async def test_a_request_that_got_no_byte_is_tried_again_and_leaves_no_kv(
    deployment: Deployment, role: Role, fault: dict[str, Any], *, stream: bool
) -> None:
    engines = [*await deployment.pair(), *await deployment.pair()]
    right = said((await deployment.plain.post(PATH, asked())).body)
    faulty = next(engine for engine in engines if engine.settings.pd_role is role)
    await faulty.post("/sim/faults", fault)
    for _ in range(2):
        assert said(response_of(await deployment.proxy.post(asked(stream=stream), PATH))) == right
    assert (await deployment.proxy.stats()).retries > 0
    await faulty.post("/sim/faults", {})
    await deployment.proxy.paid()
    await nothing_is_left(*engines)


async def test_an_engine_that_has_stalled_is_found_out_although_it_opens_every_stream(deployment: Deployment) -> None:
    # Its server goes on to say response.created, which is no sign of the engine's life.
    engines = [*await deployment.pair(), *await deployment.pair()]
    await engines[1].post("/sim/faults", {"stall": "before_first_token"})

    async def ask_again_and_again() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(deployment.proxy.post(asked(stream=True), PATH))
                await asyncio.sleep(0.1)

    asking = asyncio.create_task(ask_again_and_again())
    try:
        await deployment.proxy.stats_where(lambda stats: any(i.state == "suspect" for i in stats.instances), 20)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await engines[1].post("/sim/faults", {})
    await deployment.proxy.paid()
    await nothing_is_left(*engines)


@CONNECTORS
@pytest.mark.parametrize("seen", [b"HTTP/1.1 200", None], ids=["after the first byte", "before the first byte"])
async def test_a_client_that_leaves_leaves_no_kv_behind(deployment: Deployment, seen: bytes | None) -> None:
    deployment.step_ms = 20.0 if seen else 400.0  # prefill runs for one step, in which it has to be seen
    prefill, decode = await deployment.pair()
    client = await RawClient.send(deployment.proxy, asked(stream=True, max_output_tokens=2000), PATH)
    if seen is None:
        await prefill.until("vllm:num_requests_running", lambda count: count > 0)
    else:
        await client.read_until(seen)
    await client.leave()
    for engine in (prefill, decode):
        await engine.until("vllm:num_requests_running", lambda count: count == 0)
    await deployment.proxy.settled()
    await nothing_is_left(prefill, decode)
    assert await decode.metric("vllm:generation_tokens_total") < 2000


async def open_and_die(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    """Open a stream, as vLLM's server does before its engine hears of the request, and break off."""
    if not call.body.get("stream"):
        return await generate(engine, call, request)
    response = await start_stream(request)
    await response.write(opening(call))
    await asyncio.sleep(0.05)  # so that it is read
    if request.transport is not None:
        request.transport.abort()
    return response


FAKE = {"model": MODEL, "input": "one two three", "max_output_tokens": 4, "stream": True}


async def test_an_engine_that_dies_after_the_opening_has_sent_the_client_nothing(deployment: Deployment) -> None:
    proxy = deployment.proxy
    _, decode = await proxy.pair()
    decode.answer = open_and_die
    reply = await proxy.post(FAKE, PATH)
    assert (reply.status, reply.error["code"]) == (502, "bad_gateway")
    await proxy.pair()
    reply = await proxy.post(FAKE, PATH)
    assert (reply.status, kinds(reply)[-1]) == (200, "response.completed")


async def test_a_client_that_leaves_after_the_opening_is_not_believed_to_have_had_a_first_byte() -> None:
    # Closed now, the request might be dropped before the engine heard of it, and the KV would stay.
    async with running_proxy(abort_grace_s=60.0) as proxy:
        _, decode = await proxy.pair()
        decode.gate.clear()  # the opening comes all the same
        client = await RawClient.send(proxy, FAKE | {"max_output_tokens": 1000000}, PATH)
        await until(lambda: decode.calls)
        await asyncio.sleep(0.1)
        await client.leave()
        await asyncio.sleep(0.1)
        assert not decode.calls[0].aborted
        decode.gate.set()
        await until(lambda: decode.calls[0].aborted)


async def test_requests_are_counted_by_their_endpoint(deployment: Deployment) -> None:
    await deployment.pair()
    await deployment.proxy.post(asked(), PATH)
    metrics = (await deployment.proxy.get("/metrics")).body.decode()
    assert 'pd_proxy_requests_total{endpoint="/v1/responses",status="200"} 1.0' in metrics
