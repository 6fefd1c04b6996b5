"""Odd but legal requests, WebSockets, and engines' errors that cannot be read."""

import asyncio
import json
import logging
import re

import aiohttp
import pytest
from aiohttp import web
from support.proxy import TEXT, Call, FakeEngine, RunningProxy

from pd_contracts.names import Role

BODY = json.dumps(TEXT).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
    len(BODY),
    BODY,
)
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


async def statuses(proxy: RunningProxy, *parts: bytes, count: int) -> list[int]:
    """Of so many answers to what is written in these parts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    received = b""
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        while len(found := re.findall(rb"HTTP/1\.1 (\d{3}) ", received)) < count and (
            data := await reader.read(65_536)
        ):
            received += data
    writer.close()
    return [int(status) for status in found]


@pytest.mark.parametrize("first", [POST, CHUNKED, MODELS], ids=["tokens", "chunked", "models"])
@pytest.mark.parametrize("second", [POST, CHUNKED, MODELS], ids=["tokens", "chunked", "models"])
async def test_line_ends_before_a_request_are_ignored(proxy: RunningProxy, first: bytes, second: bytes) -> None:
    await proxy.engine(Role.COMBINED)
    both = b"\r\n" + first + b"\r\n\r\n" + second
    assert await statuses(proxy, both, count=2) == [200, 200]
    assert await statuses(proxy, *(bytes([byte]) for byte in b"\r\n\r\n"), first, b"\r", b"\n" + second, count=2) == [
        200,
        200,
    ]


async def test_line_ends_alone_are_no_request(proxy: RunningProxy) -> None:
    await proxy.engine(Role.COMBINED)
    assert await statuses(proxy, POST, b"\r\n", b"\r\n", POST, count=2) == [200, 200]
    assert await statuses(proxy, b"\n\r\n", POST, count=1) == [400]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/realtime", "/nothing"])
async def test_a_websocket_is_refused_without_a_traceback(
    proxy: RunningProxy, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await proxy.session.ws_connect(proxy.url + path)
    assert refused.value.status == 403
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"GET /v1/realtime?model=x HTTP/1.1\r\n" + WEBSOCKET, 403, b"/v1/realtime is not served, because the proxy passes no WebSockets on"),
        (b"GET /v1/realtime HTTP/1.1\r\n", 404, b"/v1/realtime is not served"),
        (b"POST /invocations/ HTTP/1.1\r\n", 404, b"such as /v1/chat/completions"),
        (b"POST /v1/load_lora_adapter HTTP/1.1\r\n", 404, b"is for each engine at its own address"),
        (b"POST /sleep?level=1 HTTP/1.1\r\n", 404, b"/sleep concerns one engine"),
        (b"GET /nothing HTTP/1.1\r\n", 404, b"not found"),
    ],
)  # fmt: skip
async def test_what_vllm_serves_and_the_proxy_does_not_is_refused_with_the_reason(
    proxy: RunningProxy, head: bytes, status: int, reason: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(head + b"Host: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 30)
    writer.close()
    assert int(answer.split()[1]) == status
    assert reason in answer


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (b'{"message":"no","code":1e400}', 502, "combined-0 answered 200 with an error that cannot be read"),
        (b"[" * 2000 + b"]" * 2000, 502, None),
        (b'{"message":"no","code":400}', 400, "no"),
    ],
)
async def test_an_error_in_a_200_that_cannot_be_read_is_the_engines(
    proxy: RunningProxy, error: bytes, status: int, message: str | None
) -> None:
    engine = await proxy.engine(Role.COMBINED)

    async def answer(_engine: FakeEngine, _call: Call, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"error":' + error + b"}", content_type="application/json")

    engine.answer = answer
    reply = await proxy.post(TEXT)
    assert reply.status == status
    assert message in (None, reply.error["message"])


async def test_an_error_without_a_message_gets_one(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)

    async def answer(_engine: FakeEngine, _call: Call, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": None}}, status=400)

    engine.answer = answer
    reply = await proxy.post(TEXT)
    assert (reply.status, reply.error["message"]) == (400, "combined-0 answered 400")
