"""No client ever waits forever: whatever an engine writes, in whatever pieces and with whatever pauses, there is an answer or an error."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.proxy import (
    MODEL,
    STREAM,
    TEXT,
    Answer,
    Call,
    FakeEngine,
    RawClient,
    Reply,
    RunningProxy,
    chunk,
    failing,
    running_proxy,
    start_stream,
)
from support.wire_engine import MARK, Script, cut, framed, stream_body, whole_body
from support.workers import running_workers

from pd_contracts import sse
from pd_contracts.names import Connector, Role
from pd_proxy.upstream.replies import READ_AHEAD_BYTES

# Nothing of the proxy's waits for longer than this; a client of it not much longer.
WAITS: dict[str, Any] = {
    "prefill_timeout_s": 0.6,
    "decode_stall_timeout_s": 0.4,
    "give_up_s": 0.8,
    "retries": 1,
    "max_answer_bytes": 3 * 1024 * 1024,
}
PATIENCE_S = 10.0
SIZES = st.sampled_from([0, 1, 60, 5_000, READ_AHEAD_BYTES - 30, READ_AHEAD_BYTES + 1, 700_000, 2_900_000, 3_200_000])
ENDS = st.sampled_from(["kept", "kept", "kept", "closed", "reset", "silent"])


@st.composite
def scripts(draw: st.DrawFn, *, stream: bool) -> Script:
    """Every size, framing, chunking, cut and pause; often right to its end, sometimes not."""
    size = draw(SIZES)
    kind = "text/event-stream" if stream else "application/json"
    body = stream_body(size, draw(st.integers(1, 40))) if stream else whole_body(size)
    if stream:  # the standard's three line ends
        body = body.replace(b"\n", draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])))
    sizes = [*draw(st.lists(st.integers(1, 70_000), max_size=4)), draw(st.sampled_from([7_000, 65_536, 4_000_000]))]
    framing = draw(st.sampled_from(["length", "chunked", "chunked", "endless"]))
    ends = draw(ENDS)
    if framing == "endless" and ends == "kept":
        ends = "closed"
    headers = [f"Content-Type: {kind}", *(["Connection: close"] if ends == "closed" else [])]
    data = framed(body, framing, sizes, *headers)
    # Something is always missing of what ends in silence: an engine that said everything would be asked again over that connection.
    lost = draw(st.sampled_from([0, 0, 0, 1, 3, 1000] if ends != "silent" else [1, 3, 1000]))
    pieces = cut(data[: len(data) - lost], draw(st.lists(st.integers(0, len(data)), max_size=8)))
    pauses = draw(st.dictionaries(st.integers(0, 8), st.sampled_from([0.001, 0.02]), max_size=3))
    return Script(pieces, pauses, ends, whole=not lost and ends in ("kept", "closed") and len(body) < 3_000_000)


@contextlib.asynccontextmanager
async def one_of(role: Role, workers: int) -> AsyncIterator[tuple[RunningProxy, FakeEngine]]:
    """A proxy and one engine per role, of which one is scripted."""
    async with running_workers(**WAITS) if workers > 1 else running_proxy(**WAITS) as proxy:
        if role is Role.COMBINED:
            yield proxy, await proxy.engine(role)
            return
        prefill, decode = await proxy.pair(Connector.P2P_NCCL)
        yield proxy, prefill if role is Role.PREFILL else decode


async def ask(proxy: RunningProxy, engine: FakeEngine, script: Script, *, stream: bool) -> Reply:
    """What a client gets, who waits for PATIENCE_S only."""
    await proxy.state_of(engine, "ready")
    engine.answer = script
    body = (STREAM if stream else TEXT) | {"prompt": MARK}
    async with asyncio.timeout(PATIENCE_S):
        return await proxy.post(body)


def check(reply: Reply, script: Script, *, stream: bool) -> None:
    """An answer, or an error that says so."""
    if reply.status != 200:
        assert reply.status in (502, 503, 504), reply.body[:200]
        assert reply.error["message"]
        assert not script.whole, reply.body[:200]
    elif not stream:
        assert reply.json["choices"]
    else:
        last = reply.events[-1]
        assert last == "[DONE]" or "error" in json.loads(last)
        assert (last == "[DONE]") >= script.whole


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("role", "workers"), [(Role.COMBINED, 1), (Role.DECODE, 1), (Role.COMBINED, 2)], ids=str)
async def test_no_client_waits_forever(role: Role, workers: int, stream: bool) -> None:
    async with one_of(role, workers) as (proxy, engine):
        loop = asyncio.get_running_loop()
        drawn: list[Script] = []

        @settings(max_examples=25, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(scripts(stream=stream))
        def draw(script: Script) -> None:
            drawn.append(script)

        await loop.run_in_executor(None, draw)
        for script in drawn:
            check(await ask(proxy, engine, script, stream=stream), script, stream=stream)
        await proxy.settled()


async def comments(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
    """Only what keeps a connection alive."""
    response = await start_stream(request)
    for number in itertools.count():
        await response.write((b": ping\n\n", b"\n\n", b"event: ping\n\n", b"data:\n\n", b"data\n\n")[number % 5])
        await asyncio.sleep(0.02)
    return response


async def no_choices(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
    """Chunks in which no choice says anything."""
    response = await start_stream(request)
    for number in itertools.count():
        await response.write(
            (b'data: {"id":"x","choices":[]}\n\n', b'data: {"choices": [], "usage": {}}\n\n')[number % 2]
        )
        await asyncio.sleep(0.02)
    return response


async def no_choice_then_tokens(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    """As servers do that say something of the prompt first."""
    response = await start_stream(request)
    await response.write(b'data: {"id":"x","choices":[],"prompt_filter_results":[]}\n\n')
    await asyncio.sleep(0.05)
    await response.write(chunk(call, "t0 ") + b"data: [DONE]\n\n")
    return response


async def test_a_chunk_without_a_choice_reaches_the_client(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED, answer=no_choice_then_tokens)
    reply = await proxy.post(STREAM)
    assert (reply.status, len(reply.events)) == (200, 3)
    assert "prompt_filter_results" in reply.events[0]


async def one_token_then_comments(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    """One event first."""
    response = await start_stream(request)
    await response.write(chunk(call, "t0 "))
    while True:
        await response.write(b": ping\n\n")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("answer", [comments, no_choices])
@pytest.mark.parametrize("way", ["", "?through=hypercorn"])
async def test_comments_and_empty_events_are_no_progress(way: str, answer: Answer) -> None:
    async with running_proxy(**WAITS, probe_interval_s=5.0) as proxy:
        engine = await proxy.engine(Role.COMBINED, answer=answer)
        async with asyncio.timeout(PATIENCE_S):
            reply = await proxy.post(STREAM, "/v1/completions" + way)
        assert (reply.status, reply.error["code"]) == (504, "engine_stalled")
        await proxy.state_of(engine, "suspect")


TOKEN = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"t0 "}]}\n\n'
EMPTY_OBJECTS = [
    b"{}",
    b'{"choices":null}',
    b'{"choices":{}}',
    b'{"choices" : [ ]}',
    b'{"usage":{"completion_tokens":1},"choices": [\t]}',
    b'{"text":"choices","other":[{}]}',
]


@pytest.mark.parametrize("way", ["", "?through=hypercorn"])
@pytest.mark.parametrize("empty", EMPTY_OBJECTS)
async def test_objects_that_are_no_part_of_an_answer_are_no_progress(empty: bytes, way: str) -> None:
    async def answer(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(TOKEN)
        while True:
            await response.write(b"data: " + empty + b"\n\n")
            await asyncio.sleep(0.02)

    async with running_proxy(**WAITS, probe_interval_s=5.0) as proxy:
        engine = await proxy.engine(Role.COMBINED, answer=answer)
        async with asyncio.timeout(PATIENCE_S):
            reply = await proxy.post(STREAM, "/v1/completions" + way)
        assert '"engine_stalled"' in reply.events[-1]
        await proxy.state_of(engine, "suspect")


def typed(kind: str, **fields: Any) -> bytes:
    """An event of /v1/responses or /v1/messages."""
    return sse.encode_event(json.dumps({"type": kind, **fields}), kind)


RESPONSE = {"response": {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}}
BEGUN = {
    "/v1/responses": typed("response.created", **RESPONSE) + typed("response.output_text.delta", delta="t0 "),
    "/v1/messages": typed("message_start", message={"id": "msg_1", "content": []}),
}
STILL = {
    "/v1/responses": [typed("response.in_progress", **RESPONSE), typed("response.output_item.added", item={})],
    "/v1/messages": [typed("ping"), typed("message_start", message={}), typed("content_block_stop", index=0)],
}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/responses": {"model": MODEL, "input": "hi", "stream": True},
    "/v1/messages": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True},
}


@pytest.mark.parametrize("way", ["", "?through=hypercorn"])
@pytest.mark.parametrize("begins", [True, False], ids=["after a token", "at once"])
@pytest.mark.parametrize("path", STILL)
async def test_events_without_a_part_of_the_output_are_no_progress(path: str, begins: bool, way: str) -> None:
    async def answer(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        if begins:
            await response.write(BEGUN[path])
        for event in itertools.cycle(STILL[path]):
            await response.write(event)
            await asyncio.sleep(0.02)
        return response

    async with running_proxy(**WAITS, probe_interval_s=5.0) as proxy:
        engine = await proxy.engine(Role.COMBINED, answer=answer)
        async with asyncio.timeout(PATIENCE_S):
            reply = await proxy.post(ASKED[path], path + way)
        assert b"makes no progress" in reply.body or b"stalled" in reply.body
        assert reply.status == 504 or b"event: error" in reply.body
        await proxy.state_of(engine, "suspect")


def writing(data: bytes, *, size: int = 1_000_000) -> Answer:
    """A stream of these bytes, that many at once."""

    async def answer(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        for begin in range(0, len(data), size):
            await response.write(data[begin : begin + size])
            await asyncio.sleep(0)
        return response

    return answer


@pytest.mark.parametrize("way", ["", "?through=hypercorn"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
async def test_a_stream_whose_end_mark_has_no_empty_line_is_whole(way: str, end: str) -> None:
    async with running_proxy(**WAITS) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        for data, size in ((TOKEN, 1_000_000), (TOKEN, 7), (TOKEN * 20, 90)):
            engine.answer = writing(data + b"data: [DONE]" + end.encode(), size=size)
            reply = await proxy.post(STREAM, "/v1/completions" + way)
            assert (reply.status, reply.events[-1]) == (200, "[DONE]")
            assert len(reply.events) == data.count(TOKEN) + 1
        await proxy.settled()
        assert (await proxy.stats()).instances[0].failures == 0


@pytest.mark.parametrize("way", ["", "?through=hypercorn"])
@pytest.mark.parametrize("size", [1_000_000, len(TOKEN), 30])
@pytest.mark.parametrize("broken", [TOKEN[:-7] + b"\n\n", TOKEN[:-2] + b"}\n\n", b'data: {"choices":[{oops}\n\n'])
async def test_broken_json_in_a_stream_is_an_error_and_the_engines_failure(way: str, size: int, broken: bytes) -> None:
    async with running_proxy(**WAITS) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        for tokens in (1, 20):
            engine.answer = writing(TOKEN * tokens + broken + TOKEN + b"data: [DONE]\n\n", size=size)
            reply = await proxy.post(STREAM, "/v1/completions" + way)
            assert b"not valid JSON" in reply.body
            assert broken not in reply.body
            assert b"[DONE]" not in reply.body
        await proxy.settled()
        assert (await proxy.stats()).instances[0].failures >= 2


@pytest.mark.parametrize("way", ["", "?through=hypercorn"])
async def test_a_stream_that_goes_silent_ends_although_others_move(way: str) -> None:
    async with running_proxy(**WAITS | {"decode_stall_timeout_s": 0.5, "give_up_s": 1.0}) as proxy:
        engine = await proxy.engine(Role.COMBINED)
        moving = await RawClient.send(proxy, STREAM | {"max_tokens": 1_000_000})
        await moving.read_until(b"t1 ")
        engine.answer = one_token_then_comments
        async with asyncio.timeout(PATIENCE_S):
            reply = await proxy.post(STREAM, "/v1/completions" + way)
        assert '"engine_stalled"' in reply.events[-1]
        assert (await proxy.state_of(engine, "ready")).failures == 1


BROKEN = {
    "HTML": b"<html>busy</html>",
    "broken JSON": b'{"choices": [',
    "an error": b'{"error": {"message": "out of memory at 10.1.2.3:80", "code": 500}}',
    "bytes that are no text": b'{"choices": [{"index": 0, "text": "\xff"}]}',
    "nothing": b"",
    "an empty object": b"{}",
    "a list": b'[{"index": 0, "text": "t0"}]',
    "no choices": b'{"choices": []}',
    "choices that are null": b'{"choices": [null]}',
    "choices that are numbers": b'{"choices": [1, 2]}',
    "choices that are texts": b'{"choices": ["t0"]}',
    "choices that are lists": b'{"choices": [[{"text": "t0"}]]}',
    "choices that are empty objects": b'{"choices": [{}]}',
    "an empty object after a choice": b'{"choices": [{"index": 0, "text": "t0"}, {}]}',
    "choices of a chat": b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "t0"}}]}',
    "a choice without text": b'{"choices": [{"index": 0, "text": null}]}',
    "a choice as an object": b'{"choices": {"index": 0, "text": "t0"}}',
}


@pytest.mark.parametrize("connector", [Connector.P2P_NCCL, Connector.NIXL, Connector.EXAMPLE])
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
async def test_a_200_of_prefill_that_is_no_answer_is_not_believed(connector: Connector, body: bytes) -> None:
    async with running_proxy() as proxy:
        bad, decode = await proxy.pair(connector)
        bad.answer = failing(200, body)
        reply = await proxy.post(TEXT)
        assert reply.status == 502
        assert not decode.calls
        assert b"10.1.2.3" not in reply.body
        good = await proxy.engine(Role.PREFILL, connector, boot_id="boot-2")
        replies = [await proxy.post(TEXT) for _ in range(2)]
        assert [reply.status for reply in replies] == [200, 200]
        assert good.calls
        bad.answer = None
        await proxy.paid()


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_a_prefill_that_gave_its_request_up_has_pushed_no_kv(reason: str) -> None:
    async with running_proxy() as proxy:
        prefill, decode = await proxy.pair(Connector.P2P_NCCL)
        answer = {"choices": [{"index": 0, "text": "", "finish_reason": reason}]}
        prefill.answer = failing(200, json.dumps(answer).encode())
        reply = await proxy.post(TEXT)
        assert (reply.status, reply.error["message"]) == (502, "prefill gave the request up")
        assert not decode.calls
        prefill.answer = None
        await proxy.paid()


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
async def test_a_200_of_decode_that_is_no_answer_is_an_error(body: bytes) -> None:
    async with running_proxy() as proxy:
        await proxy.engine(Role.COMBINED, answer=failing(200, body))
        reply = await proxy.post(TEXT)
        assert reply.status == 502
        assert reply.error["message"]
        assert b"10.1.2.3" not in reply.body


@pytest.mark.parametrize("size", [300_000, 900_000, 3_000_000])
async def test_an_error_of_any_size_arrives(size: int) -> None:
    body = json.dumps(
        {"error": {"message": "too long: " + "x" * size, "type": "BadRequestError", "code": 400}}
    ).encode()
    async with running_proxy() as proxy:
        await proxy.engine(Role.COMBINED, answer=failing(400, body))
        async with asyncio.timeout(PATIENCE_S):
            reply = await proxy.post(TEXT)
        assert reply.status == 400
        assert reply.error["message"].startswith("too long" if size < 1_000_000 else "combined-0 answered 400")


async def test_an_answer_above_the_bound_is_refused_with_its_name_and_tried_only_once() -> None:
    async with running_proxy(max_answer_bytes=100_000) as proxy:
        engine = await proxy.engine(Role.COMBINED, answer=failing(200, whole_body(200_000)))
        await proxy.engine(Role.COMBINED, answer=failing(200, whole_body(200_000)), boot_id="boot-2")
        reply = await proxy.post(TEXT)
        assert (reply.status, reply.error["code"]) == (502, "answer_too_large")
        assert "MAX_ANSWER_BYTES" in reply.error["message"]
        assert (await proxy.stats()).retries == 0
        assert len(engine.calls) <= 1
