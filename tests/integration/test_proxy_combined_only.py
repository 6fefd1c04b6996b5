"""Requests that prefill and decode cannot share, because they generate no tokens: embeddings, scores, audio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.aio import until
from support.proxy import MODEL, Answer, Call, FakeEngine, RunningProxy, failing, running_proxy, start_stream

from pd_contracts.names import Role
from pd_proxy.api.delivery import Delivery
from pd_proxy.errors import SlowClientError

PATHS = (
    *("/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank"),
    *("/v2/rerank", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/decisions", "/cohere/v2/chat"),
)
BODY = {"model": MODEL, "input": "x"}


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy() as proxy:
        yield proxy


def saying(text: str, kind: str = "application/json") -> Answer:
    async def answer(_engine: FakeEngine, _call: Call, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=text.encode(), content_type=kind)

    return answer


async def test_a_client_that_leaves_just_before_its_answer_leaves_nothing_behind(
    proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def left(_: Delivery, _event: Any) -> None:
        monkeypatch.undo()
        raise SlowClientError("the client has left")

    await proxy.engine(Role.COMBINED, answer=saying("{}"))
    monkeypatch.setattr(Delivery, "send", left)
    assert (await proxy.post(BODY, "/v1/embeddings")).status == 500
    await proxy.settled()


@pytest.mark.parametrize("path", PATHS)
async def test_a_pair_says_that_it_cannot_and_a_combined_engine_can(proxy: RunningProxy, path: str) -> None:
    prefill, decode = await proxy.pair()
    refused = await proxy.post(BODY, path, **{"Content-Type": "application/json"})
    assert (refused.status, refused.error["code"]) == (400, "not_disaggregable")
    assert refused.error["message"] == f"{path} needs a combined engine, and this deployment has none"

    combined = await proxy.engine(Role.COMBINED, answer=saying('{"object": "list"}'))
    reply = await proxy.post(BODY, path, **{"Content-Type": "application/json"})

    assert (reply.status, reply.json) == (200, {"object": "list"})
    [call] = combined.calls
    assert (call.path, call.body) == (path, BODY)
    assert not prefill.calls + decode.calls
    await proxy.settled()


async def test_a_form_with_a_file_comes_to_the_engine_of_its_model(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED, models=["text"], boot_id="text", answer=failing(400))
    whisper = await proxy.engine(
        Role.COMBINED, models=["whisper"], boot_id="whisper", answer=saying("hello", "text/plain")
    )
    form = aiohttp.FormData()
    form.add_field("file", b"\x00\xff" * 1000, filename="a.wav", content_type="audio/wav")
    form.add_field("model", "whisper")
    for _ in range(2):
        async with proxy.session.post(f"{proxy.url}/v1/audio/transcriptions", data=form()) as response:
            assert (response.status, response.content_type, await response.text()) == (200, "text/plain", "hello")
    assert len(whisper.calls) == 2
    assert b"\x00\xff" * 1000 in whisper.calls[0].raw
    assert whisper.calls[0].headers["Content-Type"].startswith("multipart/form-data; boundary=")


async def test_a_stream_passes_as_it_comes(proxy: RunningProxy) -> None:
    async def answer(engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(b"data: 1\n\n")
        await engine.gate.wait()
        await response.write(b"data: 2\n\n")
        return response

    engine = await proxy.engine(Role.COMBINED, answer=answer)
    engine.gate.clear()
    async with proxy.session.post(f"{proxy.url}/v1/audio/transcriptions", json=BODY) as response:
        assert await asyncio.wait_for(response.content.readuntil(b"1\n\n"), 30) == b"data: 1\n\n"
        assert (await proxy.stats()).instances[0].in_flight == 1
        engine.gate.set()
        assert await response.content.read() == b"data: 2\n\n"
    await proxy.settled()


async def cut(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 100
    await response.prepare(request)
    await response.write(b'{"data": ')
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    "answer",
    [
        failing(200),
        failing(200, content_type="text/event-stream"),
        failing(204),
        failing(206, b"{}"),
        failing(301, headers={"Location": "http://10.1.2.3/"}),
        failing(200, b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
        cut,
        saying('{"data": [1, 2'),
        saying('{"data": [1, 2]}]'),
        failing(200, b'{"data": "\xff"}', content_type="application/json"),
    ],
    ids=["nothing", "an empty stream", "204", "206", "301", "gzip", "cut", "half", "trailing", "no UTF-8"],
)
async def test_what_is_no_answer_is_an_error_with_a_status(proxy: RunningProxy, answer: Answer) -> None:
    await proxy.engine(Role.COMBINED, answer=answer)
    reply = await proxy.post(BODY, "/v1/embeddings")
    assert reply.status == 502
    assert reply.error["message"]
    assert (await proxy.stats_where(lambda stats: not stats.instances[0].in_flight)).instances[0].failures == 1


async def test_a_stream_that_is_cut_ends_with_an_error_event(proxy: RunningProxy) -> None:
    async def half(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(b'data: {"text": "a"}\n\ndata: {"te')
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.close()
        return response

    await proxy.engine(Role.COMBINED, answer=half)
    reply = await proxy.post(BODY, "/v1/audio/transcriptions")
    *_, last = reply.body.decode().strip().split("\n\n")
    assert reply.status == 200
    assert "closed the connection before its answer was complete" in last
    assert last.startswith("data: {")
    assert (await proxy.stats_where(lambda stats: not stats.instances[0].in_flight)).instances[0].failures == 1


async def test_an_answer_above_the_bound_is_refused_with_its_name() -> None:
    async with running_proxy(max_answer_bytes=1000) as proxy:
        await proxy.engine(Role.COMBINED, answer=failing(200, b"[" + b" " * 2000 + b"]"))
        reply = await proxy.post(BODY, "/v1/embeddings")
        assert (reply.status, reply.error["code"]) == (502, "answer_too_large")


async def test_a_client_that_leaves_ends_it_at_the_engine(proxy: RunningProxy) -> None:
    async def answer(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        while True:
            await response.write(b"data: 1\n\n")
            await asyncio.sleep(0.01)

    engine = await proxy.engine(Role.COMBINED, answer=answer)
    async with proxy.session.post(f"{proxy.url}/v1/audio/transcriptions", json=BODY) as response:
        await response.content.readuntil(b"1\n\n")
    await until(lambda: engine.calls[0].aborted)
    await proxy.settled()


@pytest.mark.parametrize(
    ("said", "status", "message"),
    [
        (failing(404, b'{"error":{"message":"The model does not support it","code":404}}'), 404, "does not support it"),
        (failing(500, b"Traceback 127.0.0.1"), 502, "combined-0 answered 500"),
        (failing(503, headers={"Retry-After": "9"}), 503, "combined-0 answered 503"),
    ],
)
async def test_an_engines_refusal_comes_back_without_addresses(
    proxy: RunningProxy, said: Any, status: int, message: str
) -> None:
    await proxy.engine(Role.COMBINED, answer=said)
    reply = await proxy.post(BODY, "/v1/embeddings")
    assert reply.status == status
    assert message in reply.error["message"]
    assert b"127.0.0.1" not in reply.body
    assert reply.headers.get("Retry-After") == ("9" if status == 503 else None)
    await proxy.settled()


async def test_without_the_model_or_the_key_nobody_is_asked(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    reply = await proxy.post(BODY | {"model": "other"}, "/v1/embeddings")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert not engine.calls


@pytest.mark.parametrize("body", [b"", b'{"tokens": [1, 2', b"<html></html>", b'{"tokens": "\xff"}'])
async def test_an_answer_of_any_engine_that_is_no_json_is_an_error_or_comes_from_another_one(
    proxy: RunningProxy, body: bytes
) -> None:
    broken = await proxy.engine(
        Role.COMBINED, boot_id="broken", answer=failing(200, body, content_type="application/json")
    )
    reply = await proxy.post(BODY, "/tokenize")
    assert (reply.status, reply.error["code"]) == (502, "bad_gateway")
    await proxy.engine(Role.COMBINED, boot_id="other", answer=saying('{"tokens": [1]}'))
    before = len(broken.calls)
    for _ in range(2):
        assert (await proxy.post(BODY, "/tokenize")).json == {"tokens": [1]}
    assert len(broken.calls) == before + 1, "each request began with another engine"


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1"}},
        {"request_id": "another client's"},
        {"vllm_xargs": {"kv_transfer_params": {"pd": {"key": "x"}}, "kept": 1}},
        {"sampling_params": {"extra_args": {"ec_transfer_params": {}, "kept": 1}}},
    ],
)
async def test_a_client_cannot_say_where_kv_comes_from(proxy: RunningProxy, fields: dict[str, Any]) -> None:
    engine = await proxy.engine(Role.COMBINED, answer=saying("{}"))
    assert (await proxy.post(BODY | fields, "/cohere/v2/chat")).status == 200
    [call] = engine.calls
    assert b"_transfer_params" not in call.raw
    assert b"another client" not in call.raw
    assert (b"kept" in call.raw) is ("kept" in str(fields))
    assert BODY.items() <= call.body.items()


async def test_nor_in_a_form_a_query_or_a_header(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED, answer=saying("{}"))
    form = aiohttp.FormData({"vllm_xargs": '{"kv_transfer_params": "x", "kept": 1}', "kv_transfer_params": "{}"})
    form.add_field("file", b"\r\n--kv_transfer_params" * 9, filename="a.wav", content_type="audio/wav")
    asked = "/v1/audio/transcriptions?kv_transfer_params=1&vllm_xargs=1"
    headers = {"X-KV-Transfer-Params": "1", "kv_transfer_params": "1", "X-Request-Id": "___decode_addr_10.0.0.1:1_1"}
    async with proxy.session.post(proxy.url + asked, data=form, headers=headers) as response:
        assert response.status == 200
    [call] = engine.calls
    assert call.path == "/v1/audio/transcriptions"
    assert call.raw.count(b"kv_transfer_params") == 9, "what the file holds is nobody's business"
    assert b'{"kept":1}' in call.raw
    assert not {name.lower() for name in call.headers} & {name.lower() for name in headers}


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions/render", "/v1/embeddings", "/v1/audio/transcriptions"])
async def test_a_body_that_only_an_engine_could_read_goes_to_none(proxy: RunningProxy, path: str) -> None:
    engine = await proxy.engine(Role.COMBINED, answer=saying("{}"))
    for body in (
        b'{"kv_transfer_params": {}, "temperature": NaN}',
        '{"kv_transfer_params": {}}'.encode("utf-16"),
        b"--b\r\n",
    ):
        for kind in ("application/json", "multipart/form-data; boundary=b"):
            async with proxy.session.post(proxy.url + path, data=body, headers={"Content-Type": kind}) as response:
                assert response.status == 400
                assert (await response.json())["error"]["message"]
    assert not engine.calls
    assert (await proxy.post(BODY | {"kv_transfer_params": {}}, path)).status == 200
    assert engine.calls[0].body == BODY
