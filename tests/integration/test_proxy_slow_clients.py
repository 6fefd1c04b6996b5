"""Clients on slow links: one that goes on reading or writing is served to the end, one that does not is ended, and does not count as a success."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from support.proxy import MODEL, STREAM, TEXT, Call, FakeEngine, RunningProxy, chunk, running_proxy, start_stream
from support.wire_engine import whole_body

from pd_contracts.names import Role

# More than what kernels hold for a connection.
SIZE = 12_000_000
WAYS = pytest.mark.parametrize("way", ["", "?through=hypercorn"])


async def large(_engine: FakeEngine, _call: Call, _request: web.Request) -> web.StreamResponse:
    """A large answer in one piece."""
    return web.Response(body=whole_body(SIZE), content_type="application/json")


async def flood(_engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    response = await start_stream(request)
    for _ in range(SIZE // 100_000):
        await response.write(chunk(call, "x" * 100_000))
    await response.write(b"data: [DONE]\n\n")
    return response


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(keep_alive_s=0.3, client_stall_timeout_s=1.5, upload_idle_timeout_s=0.6) as proxy:
        yield proxy


def connected(proxy: RunningProxy) -> socket.socket:
    """A client's socket with little room."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    found.connect(("127.0.0.1", proxy.settings.http_proxy_port))
    found.setblocking(False)
    return found


def request_of(body: object, way: str, *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST /v1/completions{way} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


async def status_counted(proxy: RunningProxy) -> str:
    """The status and cause under which the only request is counted, once it is over."""
    await proxy.stats_where(lambda stats: stats.requests == 1 and not stats.in_flight)
    lines = (await proxy.get("/metrics")).body.decode().splitlines()
    causes = [line for line in lines if line.startswith("pd_proxy_failures_total{") and line.endswith(" 1.0")]
    return causes[0].split('"')[1] if causes else "success"


@WAYS
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_that_reads_slowly_gets_everything(proxy: RunningProxy, way: str, stream: bool) -> None:
    await proxy.engine(Role.COMBINED, answer=flood if stream else large)
    loop = asyncio.get_running_loop()
    with connected(proxy) as client:
        await loop.sock_sendall(client, request_of(STREAM if stream else TEXT, way))
        received, tail = 0, b""
        end = loop.time() + 3.0  # ten times KEEP_ALIVE_S
        while not tail.endswith((b'x"}]}', b"0\r\n\r\n")):
            data = await asyncio.wait_for(loop.sock_recv(client, 65_536), 30)
            assert data, f"cut after {received} bytes"
            received, tail = received + len(data), (tail + data)[-5:]
            await asyncio.sleep(max(0.0, (end - loop.time()) * len(data) / SIZE))
        assert received > SIZE
    assert await status_counted(proxy) == "success"


@WAYS
async def test_a_client_that_reads_nothing_is_given_up_and_is_no_success(proxy: RunningProxy, way: str) -> None:
    await proxy.engine(Role.COMBINED, answer=large)
    loop = asyncio.get_running_loop()
    with connected(proxy) as client:
        await loop.sock_sendall(client, request_of(TEXT, way))
        cause = await status_counted(proxy)
    assert cause in ("slow_client", "client_left")


@WAYS
async def test_a_client_that_leaves_in_the_middle_is_no_success(proxy: RunningProxy, way: str) -> None:
    await proxy.engine(Role.COMBINED, answer=large)
    loop = asyncio.get_running_loop()
    with connected(proxy) as client:
        await loop.sock_sendall(client, request_of(TEXT, way))
        assert await asyncio.wait_for(loop.sock_recv(client, 1000), 30)
    assert await status_counted(proxy) == "client_left"


@WAYS
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_may_take_as_long_as_bytes_flow(proxy: RunningProxy, way: str, chunked: bool) -> None:
    engine = await proxy.engine(Role.COMBINED)
    body = json.dumps({"model": MODEL, "prompt": "x" * 30_000, "max_tokens": 1}).encode()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"POST /v1/completions{way} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(head)
    for start in range(0, len(body), 5_000):
        part = body[start : start + 5_000]
        writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        await asyncio.sleep(0.3)  # seven times: longer than UPLOAD_IDLE_TIMEOUT_S in all
    writer.write(b"0\r\n\r\n" if chunked else b"")
    line = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert b" 200 " in line
    assert len(engine.calls) == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions?x=1", "/v1/embeddings", "/tokenize"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_that_stops_gets_408(proxy: RunningProxy, path: str, chunked: bool) -> None:
    engine = await proxy.engine(Role.COMBINED)
    length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 5000"
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode() + b'7\r\n{"mod')
    line = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert b" 408 " in line
    assert not engine.calls


async def test_a_client_that_sends_ahead_and_reads_nothing_has_to_wait(proxy: RunningProxy) -> None:
    """Each request gets a 400 at once, so nothing but the connection itself can hold the client back."""
    requests, loop, sent, much = request_of({}, "") * 5000, asyncio.get_running_loop(), 0, 50_000_000
    with connected(proxy) as client, contextlib.suppress(TimeoutError, ConnectionError):
        while sent < much:
            await asyncio.wait_for(loop.sock_sendall(client, requests), 2.0)
            sent += len(requests)
    assert sent < much


def beginning(path: str, size: int, *, chunked: bool) -> bytes:
    """A request of which so many bytes of the body are sent, and more are announced."""
    part = b'{"prompt": "' + b"x" * (size - 12)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + part + b"\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % (size + 1000) + part


@pytest.mark.parametrize(
    ("path", "chunked"),
    [("/v1/completions", False), ("/v1/completions", True), ("/tokenize", False), ("/v1/embeddings", True)],
)
async def test_uploads_of_all_clients_hold_no_more_than_the_limit(path: str, chunked: bool) -> None:
    async with running_proxy(max_body_bytes=1_000_000, max_upload_bytes=2_000_000) as proxy:
        await proxy.engine(Role.COMBINED)
        async with contextlib.AsyncExitStack() as clients:
            slow = [await sending(clients, proxy, beginning(path, 800_000, chunked=chunked)) for _ in range(2)]
            await asyncio.sleep(0.5)
            third = await sending(clients, proxy, beginning(path, 430_000, chunked=chunked))
            over, still = await asyncio.wait(
                [asyncio.create_task(reader.readuntil(b"\r\n\r\n")) for reader in slow],
                timeout=30,
                return_when=asyncio.FIRST_COMPLETED,
            )
            assert len(over) == len(still) == 1
            head = over.pop().result()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 3" in head.lower()
            for task in still:
                task.cancel()
            assert not third.at_eof()
            large = TEXT | {"prompt": "x" * 850_000}  # a client that sends it at once is served meanwhile
            assert (await proxy.post(json.dumps(large).encode())).status == 200
            page = (await proxy.get("/metrics")).body.decode()
            # One made room for the large request.
            assert 'pd_proxy_refused_connections_total{reason="uploads"} 2.0' in page
            if path == "/v1/completions":
                assert 'pd_proxy_failures_total{cause="uploads_full"}' in page
        await proxy.settled()


async def sending(clients: contextlib.AsyncExitStack, proxy: RunningProxy, part: bytes) -> asyncio.StreamReader:
    """Send a part of a request over a connection that `clients` closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    clients.callback(writer.close)
    writer.write(part)
    return reader


async def test_heads_that_arrive_slowly_count_too() -> None:
    head = b"GET /health HTTP/1.1\r\nCookie: " + b"x" * 40_000
    async with (
        running_proxy(max_body_bytes=50_000, max_upload_bytes=100_000) as proxy,
        contextlib.AsyncExitStack() as clients,
    ):
        first = await sending(clients, proxy, head)
        for _ in range(2):
            await asyncio.sleep(0.2)
            await sending(clients, proxy, head)
        answer = await asyncio.wait_for(first.read(), 30)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"uploads_full" in answer
