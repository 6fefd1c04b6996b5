"""Engines whose every message holds addresses: no error that a client gets holds one."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from support.proxy import (
    MODEL,
    TEXT,
    Answer,
    Call,
    FakeEngine,
    Reply,
    RunningProxy,
    chunk,
    document,
    has_number,
    opening,
    running_proxy,
    start_stream,
    typed,
)

from pd_contracts import sse
from pd_contracts.names import Connector, Role

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
RESPONSE = {"model": MODEL, "input": "hi", "max_output_tokens": 4}
KEY = {"Authorization": "Bearer secret"}


def talk(engine: FakeEngine, call: Call | None = None) -> str:
    """A sentence full of addresses."""
    host, _, port = engine.http_address.partition(":")
    kv = engine.zmq_address
    an_id = call.engine_id if call else "x"
    return (
        f"cmpl-{an_id} failed at http://{engine.http_address}/v1, {host} port [{host}]:{port}, kv {kv} (10.1.2.3:22001)"
    )


def refuses(status: int, shape: str) -> Answer:
    """An error status, whose body is as one of vLLM's servers, or of something before it, writes it."""

    async def answer(engine: FakeEngine, call: Call, _request: web.Request) -> web.StreamResponse:
        said = talk(engine, call)
        bodies: dict[str, Any] = {
            "openai": {"error": {"message": said, "type": said, "param": said, "code": said}},
            "flat": {"object": "error", "message": said, "type": said, "param": said, "code": 400},
            "detail": {"detail": said},
            "list": {"detail": [{"loc": [said], "msg": said}]},
        }
        text = json.dumps(bodies[shape]) if shape in bodies else f"<html>{said}</html>"
        headers = {"X-Engine": said, "Location": f"http://{engine.http_address}/", "Server": said}
        return web.Response(status=status, text=text, headers=headers)

    return answer


async def breaks(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    """An answer that ends in the middle."""
    response = await start_stream(request)
    await response.write(chunk(call, "t0 ")[:-5])
    if request.transport is not None:
        request.transport.abort()
    return response


async def no_answer(engine: FakeEngine, call: Call, _request: web.Request) -> web.StreamResponse:
    """A 200 with something else in it."""
    return web.Response(text=talk(engine, call), headers={"X-Engine": talk(engine, call)})


def says_in_stream(before: int) -> Answer:
    """An error event, after so many tokens."""

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        for number in range(before):
            await response.write(chunk(call, f"t{number} "))
            await asyncio.sleep(0.02)
        said = talk(engine, call)
        await response.write(sse.encode_event(json.dumps({"error": {"message": said, "type": said, "code": 500}})))
        await response.write(sse.encode_event(sse.DONE))
        return response

    return answer


ANSWERS = {
    **{f"{status} {shape}": refuses(status, shape) for status in (400, 422, 500) for shape in ("openai", "flat", "detail")},
    "400 list": refuses(400, "list"),
    "307": refuses(307, "html"),
    "503 html": refuses(503, "html"),
    "breaks": breaks,
    "no answer": no_answer,
    "error first": says_in_stream(0),
    "error later": says_in_stream(2),
}  # fmt: skip


def says(shape: str, *, stream: bool, before: int = 0) -> Answer:
    """A 200 that holds an error in one of the shapes of vLLM's servers, or of one before them."""

    async def answer(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        said = f"{talk(engine, call)}\nfd00:1::2 [fd00:1::2]:{engine.http_port} kv-store:6379"
        bodies: dict[str, Any] = {
            "openai": {"error": {"message": said, "type": said, "param": said, "code": 400}},
            "text": {"error": said},
            "flat": {"object": "error", "message": said, "type": said, "param": None, "code": 400},
            "anthropic": {"type": "error", "error": {"type": said, "message": said}},
        }
        text = json.dumps(bodies.get(shape, said))[1:-1] if shape not in bodies else json.dumps(bodies[shape])
        if not stream:
            return web.Response(text=text, content_type="application/json")
        response = await start_stream(request)
        for number in range(before):
            await response.write(chunk(call, f"t{number} "))
            await asyncio.sleep(0.02)
        if shape == "comment":
            await response.write(sse.encode_comment(text) + chunk(call, "t ") + sse.encode_event(sse.DONE))
        else:
            await response.write(sse.encode_event(text, "error" if shape in ("named", "anthropic") else None))
        return response

    return answer


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shape", ["openai", "text", "flat", "anthropic", "named", "comment"])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/cohere/v2/chat", "/v1/completions", "/tokenize"])
async def test_no_combined_engine_names_an_address_in_a_200(
    proxy: RunningProxy, path: str, shape: str, stream: bool, before: int
) -> None:
    engine = await proxy.engine(Role.COMBINED, answer=says(shape, stream=stream, before=before))
    if not stream and shape in ("named", "comment"):
        return  # no JSON: not an error, or not an answer
    reply = await proxy.post(TEXT | {"stream": stream}, path, **{"Content-Type": "application/json"})
    body = reply.body.decode()
    clean(reply, engine)
    assert "fd00" not in body
    assert "kv-store" not in body
    assert "failed at" in body or path == "/tokenize" or reply.status == 502
    if not stream and shape != "comment":
        assert reply.status >= 400, body


@pytest.mark.parametrize("shape", ["openai", "text", "flat", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
async def test_no_prefill_that_writes_the_first_token_names_an_address(
    proxy: RunningProxy, stream: bool, shape: str
) -> None:
    engines = await proxy.pair(Connector.P2P)
    engines[0].answer = says(shape, stream=stream)
    reply = await proxy.post(TEXT | {"stream": stream})
    assert reply.status >= 400
    clean(reply, *engines)
    assert b"fd00" not in reply.body
    assert b"kv-store" not in reply.body


async def test_no_failed_response_names_an_address(proxy: RunningProxy) -> None:
    async def answer(engine: FakeEngine, call: Call, _request: web.Request) -> web.StreamResponse:
        error = {"code": "server_error", "message": talk(engine, call)}
        return web.json_response(document(engine, call, 0) | {"status": "failed", "output": [], "error": error})

    engine = await proxy.engine(Role.COMBINED, answer=answer)
    reply = await proxy.post(RESPONSE, "/v1/responses")
    clean(reply, engine)
    assert reply.json["status"] == "failed"


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(admin_key="secret", prefill_timeout_s=1.0, decode_stall_timeout_s=1.0) as proxy:
        yield proxy


def clean(reply: Reply, *engines: FakeEngine) -> None:
    """No header and no byte of the body names an engine's address, in whole or in part."""
    everything = reply.body.decode() + "".join(f"{name}: {value}\n" for name, value in reply.headers.items())
    for engine in engines:
        for address in (engine.http_address, engine.zmq_address):
            assert address not in everything, everything
        for port in (engine.http_port, engine.kv_port):
            assert not has_number(everything, port), everything
    for part in ("127.0.0.1", "10.1.2.3", "prefill_addr", "decode_addr"):
        assert part not in everything, everything


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("role", list(Role))
async def test_no_error_of_an_engine_names_an_address(proxy: RunningProxy, role: Role, answer: str) -> None:
    engines = [await proxy.engine(Role.COMBINED)] if role is Role.COMBINED else [*await proxy.pair()]
    faulty = next(engine for engine in engines if engine.role is role)
    faulty.answer = ANSWERS[answer]
    for body, path in ((TEXT, "/v1/completions"), (CHAT, "/v1/chat/completions"), (RESPONSE, "/v1/responses")):
        for stream in (False, True):
            reply = await proxy.post(body | {"stream": stream}, path, **{"X-PD-Timing": "1"})
            clean(reply, *engines)
            if reply.status >= 400:
                assert reply.error["message"]
    for path in ("/stats", "/ready", "/health", "/v1/models", "/version"):
        clean(await proxy.get(path), *engines)


@pytest.mark.parametrize("connector", list(Connector))
async def test_no_answer_of_a_pair_names_an_address(proxy: RunningProxy, connector: Connector) -> None:
    engines = await proxy.pair(connector)
    for body, path in ((TEXT, "/v1/completions"), (CHAT, "/v1/chat/completions"), (RESPONSE, "/v1/responses")):
        for stream in (False, True):
            reply = await proxy.post(body | {"stream": stream}, path)
            assert reply.status == 200
            assert b"t0 " in reply.body
            clean(reply, *engines)


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_no_event_of_a_response_names_one_however_it_is_cut(proxy: RunningProxy, size: int) -> None:
    async def in_pieces(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        done = typed("response.completed", response=document(engine, call, 2), sequence_number=3)
        stream = opening(call) + chunk(call, "t0 ") + done
        for start in range(0, len(stream), size):
            await response.write(stream[start : start + size])
            await asyncio.sleep(0)
        return response

    engines = await proxy.pair()
    engines[1].answer = in_pieces
    reply = await proxy.post(RESPONSE | {"stream": True}, "/v1/responses")
    assert [json.loads(event)["type"].rpartition(".")[2] for event in reply.events] == [
        "created",
        "in_progress",
        "delta",
        "completed",
    ]
    clean(reply, *engines)


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_no_error_of_an_absent_or_stalled_engine_names_an_address(proxy: RunningProxy, role: Role) -> None:
    engines = await proxy.pair()
    faulty = next(engine for engine in engines if engine.role is role)
    faulty.gate.clear()
    clean(await proxy.post(TEXT), *engines)
    faulty.health = 500
    await proxy.stats_where(lambda stats: any(i.state != "ready" for i in stats.instances))
    reply = await proxy.post(TEXT)
    assert reply.status >= 500
    clean(reply, *engines)
    for path in ("/stats", "/ready", "/v1/models"):
        clean(await proxy.get(path), *engines)
    clean(await proxy.post({}, "/admin/canary", **KEY), *engines)
    clean(await proxy.post({}, "/admin/start_profile", **KEY), *engines)
    clean(await proxy.post({"prompt": "x"}, "/tokenize"), *engines)
    clean(await proxy.get(f"/admitted?zmq_address={faulty.zmq_address}"), *engines)
    faulty.gate.set()


async def test_the_log_of_a_request_names_engines_not_addresses(
    proxy: RunningProxy, caplog: pytest.LogCaptureFixture
) -> None:
    engines = await proxy.pair()
    with caplog.at_level(logging.INFO, "pd_proxy.requests"):
        await proxy.post(TEXT, **{"X-Request-Id": "请求-1"})
        await proxy.settled()
    (line,) = [record for record in caplog.records if record.name == "pd_proxy.requests"]
    fields = {name: value for name, value in vars(line).items() if name not in vars(logging.makeLogRecord({}))}
    assert (fields["endpoint"], fields["status"], fields["cause"], fields["retries"]) == ("/v1/completions", 200, "", 0)
    assert (fields["prefill"], fields["decode"], fields["client_id"]) == ("prefill-0", "decode-0", "请求-1")
    assert fields["id"] in engines[0].calls[0].engine_id
    assert all(fields[f"{stage}_ms"] >= 0 for stage in ("queue", "prefill", "kv_and_first_decode", "decode"))
    assert "127.0.0.1" not in str(fields)
