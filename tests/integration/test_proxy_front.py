"""The socket that clients connect to, byte by byte: what is served there, what Hypercorn serves, and what is refused."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from support.aio import until
from support.proxy import BUFFER_BYTES, MODEL, Call, FakeEngine, RunningProxy, chunk, running_proxy, start_stream

from pd_contracts.http_answers import AnswerReader
from pd_contracts.names import Role

TEXT = "one two three"
BODY = json.dumps({"model": MODEL, "prompt": TEXT, "input": TEXT, "max_tokens": 2}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
PLAIN = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
IN_CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HALF_A_HEAD = b"\0\0\1\1\0\0\0\0\1\x82"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(keep_alive_s=1.0, upload_idle_timeout_s=0.3) as proxy:
        yield proxy


class Raw:
    """A connection on which a test writes what it likes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer."""
        async with asyncio.timeout(30):
            head = await self._reader.readuntil(b"\r\n\r\n")
            body = b""
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    body = await self._reader.readexactly(int(line.partition(b":")[2]))
                if line == b"transfer-encoding: chunked":
                    body = await self._reader.readuntil(b"0\r\n\r\n")
            return int(head.split(b" ")[1]), head, body

    async def something(self) -> None:
        """Wait for anything the proxy says."""
        async with asyncio.timeout(30):
            assert await self._reader.read(1)

    async def ended(self) -> None:
        """Wait until the proxy closes, whatever it says before."""
        async with asyncio.timeout(30):
            await self._reader.read()

    async def closed(self) -> bool:
        """Wait until the proxy closes; True if it said nothing more."""
        async with asyncio.timeout(30):
            try:
                return not await self._reader.read()
            except ConnectionResetError:
                return True


@pytest.fixture(name="raw")
async def _raw(proxy: RunningProxy) -> AsyncIterator[Raw]:
    limit = BUFFER_BYTES  # the reader's own, for one answer
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port, limit=limit)
    yield Raw(reader, writer)
    writer.close()


async def test_one_connection_serves_many_requests(proxy: RunningProxy, raw: Raw) -> None:
    engine = await proxy.engine(Role.COMBINED)
    for _ in range(3):
        raw.writer.write(PLAIN)
        status, head, body = await raw.answer()
        assert status == 200
        assert b"t0 t1" in body
        assert b"\r\nDate: " in head
    assert len(engine.calls) == 3


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/responses"])
async def test_a_request_may_come_byte_by_byte(proxy: RunningProxy, raw: Raw, path: bytes) -> None:
    await proxy.engine(Role.COMBINED)
    request = PLAIN.replace(b"/v1/completions", path)
    for number in range(len(request)):
        raw.writer.write(request[number : number + 1])
        await asyncio.sleep(0)
    assert (await raw.answer())[0] == 200


async def test_requests_that_are_sent_ahead_are_answered_in_order(proxy: RunningProxy, raw: Raw) -> None:
    engine = await proxy.engine(Role.COMBINED)
    engine.gate.clear()
    one, two = (PLAIN.replace(b"Host: x", b"Host: x\r\nX-Request-Id: %b" % name) for name in (b"one", b"two"))
    raw.writer.write(one + two + HEALTH)
    await until(lambda: engine.calls)
    await asyncio.sleep(0.05)
    assert len(engine.calls) == 1, "one at a time"
    engine.gate.set()
    for name in (b"one", b"two"):
        status, head, _ = await raw.answer()
        assert (status, b"\r\nX-Request-Id: %b\r\n" % name in head) == (200, True)
    assert b'"ok"' in (await raw.answer())[2]


@pytest.mark.parametrize("first", [HEALTH, IN_CHUNKS, PLAIN.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")])
async def test_after_anything_else_the_connection_serves_requests_for_tokens_too(
    proxy: RunningProxy, raw: Raw, first: bytes
) -> None:
    engine = await proxy.engine(Role.COMBINED)
    for request in (PLAIN, first):
        raw.writer.write(request)
        status, _, _ = await raw.answer()
        if status == 100:
            status, _, _ = await raw.answer()
        assert status == 200
    raw.writer.write(PLAIN)
    assert b"t0 t1" in (await raw.answer())[2]
    assert len(engine.calls) == 2 + (first is not HEALTH)


async def test_hypercorn_streams_the_same_events(proxy: RunningProxy, raw: Raw) -> None:
    await proxy.engine(Role.COMBINED)
    stream = PLAIN.replace(b'"max_tokens": 2', b'"stream":  true')
    slow = stream.replace(b"POST /v1/completions", b"POST /v1/completions?hypercorn=1")
    bodies = []
    for request in (stream, slow):
        raw.writer.write(request)
        status, head, body = await raw.answer()
        assert status == 200
        assert b"text/event-stream; charset=utf-8" in head
        bodies.append(re.sub(rb"cmpl-[0-9a-f]{32}", b"", AnswerReader().feed(head + body)))
    assert bodies[0] == bodies[1]
    assert bodies[0].endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
        HEAD + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
        HEAD + b"Transfer-Encoding : chunked\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
        HEAD + b"X: a\nContent-Length: %d\r\nX: \0\r\n\r\n" % len(BODY) + BODY,
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
        b"POST /v1/completions HTTP/1.1\n\nHost: x",
    ],
)
async def test_requests_with_two_meanings_are_refused_and_end_the_connection(
    proxy: RunningProxy, raw: Raw, request_: bytes
) -> None:
    engine = await proxy.engine(Role.COMBINED)
    raw.writer.write(request_ + PLAIN)
    status, _, _ = await raw.answer()
    assert 400 <= status < 500
    assert await raw.closed()
    assert not engine.calls


async def test_a_client_may_ask_for_the_connection_to_be_closed(proxy: RunningProxy, raw: Raw) -> None:
    await proxy.engine(Role.COMBINED)
    raw.writer.write(PLAIN.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    status, head, _ = await raw.answer()
    assert (status, b"\r\nConnection: close\r\n" in head) == (200, True)
    assert await raw.closed()


async def test_idle_connections_and_half_requests_are_closed(proxy: RunningProxy, raw: Raw) -> None:
    assert await raw.closed()
    for start, status in ((HEAD, None), (PLAIN[:-3], 408)):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        other = Raw(reader, writer)
        writer.write(start)
        if status is not None:
            assert (await other.answer())[0] == status
        assert await other.closed()
        writer.close()


@pytest.mark.parametrize(
    "beginning",
    [
        HTTP2,
        HTTP2 + SETTINGS,
        HTTP2 + b"\xff" * 100,
        HTTP2 + SETTINGS + HALF_A_HEAD,
        HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ],
    ids=["HTTP/2", "settings", "no frames", "half a head", "half a handshake"],
)
async def test_connections_that_never_ask_for_anything_are_closed(raw: Raw, beginning: bytes) -> None:
    raw.writer.write(beginning)
    await raw.ended()


async def test_a_connection_that_never_asked_for_anything_delays_no_shutdown() -> None:
    async with running_proxy(drain_timeout_s=60.0) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        raw = Raw(reader, writer)
        writer.write(HTTP2 + SETTINGS)
        await raw.something()
        proxy.shutdown.set()
        await raw.ended()
        writer.close()


async def test_requests_whose_body_never_comes_are_counted(proxy: RunningProxy, raw: Raw) -> None:
    raw.writer.write(PLAIN[:-3])
    await asyncio.sleep(0.05)
    raw.writer.close()
    await proxy.stats_where(lambda stats: stats.requests == 1)

    _, late = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    late.write(PLAIN[:-3])
    stats = await proxy.stats_where(lambda stats: stats.requests == 2)
    late.close()

    page = (await proxy.get("/metrics")).body.decode()
    assert stats.in_flight == 0
    for status in ("499", "408"):
        assert f'pd_proxy_requests_total{{endpoint="/v1/completions",status="{status}"}} 1.0' in page


async def test_a_shutdown_closes_idle_connections_and_lets_busy_ones_end(proxy: RunningProxy, raw: Raw) -> None:
    engine = await proxy.engine(Role.COMBINED)
    _, idle = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    engine.gate.clear()
    raw.writer.write(PLAIN)
    await until(lambda: engine.calls)
    proxy.shutdown.set()
    await asyncio.wait_for(idle.wait_closed(), 30) if idle.is_closing() else idle.close()
    engine.gate.set()
    assert (await raw.answer())[0] == 200
    assert await raw.closed()


async def test_a_fast_engine_does_not_fill_memory_for_a_slow_client(proxy: RunningProxy) -> None:
    written = 0

    async def flood(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = await start_stream(request)
        for _ in range(400):
            await response.write(chunk(call, "x" * 100_000))
            written += 1
        await response.write(b"data: [DONE]\n\n")
        return response

    await proxy.engine(Role.COMBINED, answer=flood)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(PLAIN.replace(b'"max_tokens": 2', b'"stream":  true'))
    await until(lambda: written)
    before = 0
    while before != written:
        before = written
        await asyncio.sleep(0.3)
    assert written < 200, "the rest waits at the engine"
    tail = b""
    while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        tail = (tail + await asyncio.wait_for(reader.read(100_000), 30))[-100:]
    assert written == 400
    writer.close()
