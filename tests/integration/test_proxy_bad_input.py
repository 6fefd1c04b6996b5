"""Invalid requests: each gets an error in OpenAI's form, and no engine gets the request."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from support.proxy import MODEL, TEXT, RunningProxy, running_proxy

from pd_contracts.names import Role

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(max_body_bytes=10_000) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/completions", b"", 400, "not valid JSON"),
        ("/v1/completions", b'{"prompt": "x"', 400, "not valid JSON"),
        ("/v1/completions", b'{"prompt": NaN}', 400, "not valid JSON"),
        ("/v1/completions", b"\xff\xfe", 400, "not valid JSON"),
        ("/v1/completions", b"[" * 5000, 400, "JSON"),
        ("/v1/completions", b'{"prompt":' + b"[" * 9000, 400, "JSON"),
        ("/v1/completions", [1, 2], 400, "must be a JSON object"),
        ("/v1/completions", "text", 400, "must be a JSON object"),
        ("/v1/completions", {"model": MODEL}, 400, "prompt"),
        ("/v1/completions", {"model": MODEL, "prompt": None}, 400, "prompt"),
        ("/v1/completions", {"model": MODEL, "messages": MESSAGES}, 400, "prompt"),
        ("/v1/chat/completions", TEXT, 400, "messages"),
        ("/v1/completions", TEXT | {"n": "many"}, 400, "`n` must be an integer"),
        ("/v1/completions", TEXT | {"stream": "perhaps"}, 400, "`stream` must be a boolean"),
        ("/v1/completions", TEXT | {"model": 7}, 400, "`model` must be a string"),
        ("/v1/completions", TEXT | {"model": "other"}, 404, "`other` does not exist"),
        ("/v1/chat/completions", {"model": "other", "messages": MESSAGES}, 404, "`other` does not exist"),
        ("/v1/completions", TEXT | {"prompt": "x" * 10_000}, 413, "exceeds the capacity limit"),
        ("/v1/fine_tuning/jobs", TEXT, 404, "not found"),
        ("/metrics", TEXT, 405, "not allowed"),
    ],
)
async def test_bad_input_gets_an_openai_shaped_error(
    proxy: RunningProxy, path: str, body: Any, status: int, says: str
) -> None:
    engine = await proxy.engine(Role.COMBINED)
    reply = await proxy.post(body, path)
    assert reply.status == status
    assert says in reply.error["message"]
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["Content-Type"] == "application/json"
    assert not engine.calls
    assert (await proxy.stats()).failures == 0, "that was not our fault"


async def test_a_body_that_grows_too_large_in_chunks_is_refused(proxy: RunningProxy) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 1000

    async with proxy.session.post(proxy.url + "/v1/completions", data=chunks()) as response:
        assert response.status == 413
        assert "error" in await response.json()


async def test_get_on_a_post_route_says_what_is_allowed(proxy: RunningProxy) -> None:
    reply = await proxy.get("/v1/completions")
    assert reply.status == 405
    assert reply.headers["Allow"] == "POST"
    assert reply.error["code"] == "method_not_allowed"


async def test_a_request_may_leave_the_model_to_the_engine(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    assert (await proxy.post({"prompt": "x", "max_tokens": 1})).status == 200
    assert "model" not in engine.calls[0].body


async def test_values_that_vllm_would_convert_are_understood(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED)
    reply = await proxy.post(TEXT | {"stream": "true", "n": "1"})
    assert reply.events[-1] == "[DONE]"


async def test_headers_that_are_too_large_are_refused(proxy: RunningProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(b"GET /health HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n")
    status = await asyncio.wait_for(reader.readline(), 30)
    assert b" 431 " in status or b" 400 " in status
    writer.close()


async def test_openais_client_understands_answers_and_errors(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED)
    async with openai.AsyncOpenAI(base_url=proxy.url + "/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        answer = await client.completions.create(model=MODEL, prompt="x", max_tokens=2)
        assert answer.choices[0].text == "t0 t1"
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], max_completion_tokens=3, stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "t0 t1 t2 "
        with pytest.raises(openai.NotFoundError) as caught:
            await client.completions.create(model="other", prompt="x")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_openais_client_raises_on_a_stream_that_breaks_off(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    async with openai.AsyncOpenAI(base_url=proxy.url + "/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model=MODEL, prompt="x", max_tokens=1000000, stream=True)
        engine.gate.clear()
        engine.boot_id = "boot-2"
        with pytest.raises(openai.APIError, match="combined-0 restarted"):
            async for _ in stream:
                pass
