"""Shortage of descriptors, connections or the event loop's time: no engine is blamed, and no client can use up all."""

import asyncio
import io
import json
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from support.processes import log_lines, process
from support.proxy import MODEL, STREAM, TEXT, RawClient, Reply, RunningProxy, running_proxy

from pd_contracts.names import Role
from pd_proxy.api.room import RESERVE, Room, client_of
from pd_proxy.errors import OutOfDescriptorsError, TooManyConnectionsError


@pytest.fixture(name="proxy")
async def _proxy() -> AsyncIterator[RunningProxy]:
    async with running_proxy(retries=1) as proxy:
        yield proxy


async def test_without_descriptors_the_proxy_says_so_and_blames_no_engine() -> None:
    async with process(drain_timeout_s=1) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        await proxy.get("/health")
        soft, hard = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (1, hard))
        writer.write(_request(TEXT))
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 30)
        await asyncio.sleep(0.5)  # health checks lack descriptors, too
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (soft, hard))
        writer.close()
        assert b" 503 " in answer
        assert b"out_of_descriptors" in answer
        assert b"Retry-After" in answer
        assert (await proxy.state_of(engine, "ready")).failures == 0
        assert (await proxy.post(TEXT)).status == 200
        page = (await proxy.get("/metrics")).body.decode()
        assert 'pd_proxy_failures_total{cause="out_of_descriptors"} 1.0' in page
        assert 'pd_proxy_refused_connections_total{reason="engine"}' in page
        child.terminate()
        said = [line for line in await log_lines(child) if line["message"] == "no room for a connection"]
    assert len(said) == 1


def _request(body: object, headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def test_connections_past_the_room_get_503_and_those_before_are_served() -> None:
    async with process(drain_timeout_s=1, files=130) as (proxy, child):
        engine = await proxy.engine(Role.COMBINED)
        streams = [await RawClient.send(proxy, STREAM | {"max_tokens": 1_000_000}) for _ in range(15)]
        for stream in streams:
            await stream.read_until(b"t0 ")
        held = await asyncio.gather(*(_first_line(proxy) for _ in range(60)))
        more = Counter(status for status, _ in held)
        for stream in streams:
            await stream.read_until(b"t9 ")
        assert set(more) <= {"200", "503"}
        assert more["503"] >= 20
        assert (await proxy.state_of(engine, "ready")).failures == 0
        for stream in streams:
            await stream.leave()
        for _, writer in held:
            writer.close()
        await proxy.settled()
        child.terminate()
        said = [line for line in await log_lines(child) if line["message"] == "no room for a connection"]
    assert [line["reason"] for line in said] == ["clients"]


async def test_every_client_that_finds_no_room_is_told_why_also_while_connections_to_a_pair_are_kept() -> None:
    async with process(drain_timeout_s=1, files=100) as (proxy, child):
        for role in (Role.PREFILL, Role.DECODE):
            await proxy.engine(role)
        for _ in range(3):
            answers = await asyncio.gather(*(_whole(proxy) for _ in range(60)))
            refused = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200 ")]
            assert len(answers) - len(refused) >= 8
            assert all(b" 503 " in answer[:20] and b"out_of_descriptors" in answer for answer in refused)
        child.terminate()


async def _whole(proxy: RunningProxy) -> bytes:
    """All that a client got. It may be reset behind that, if its request arrived after its answer had been sent."""
    loop, answer = asyncio.get_running_loop(), b""
    with socket.socket() as client:
        client.setblocking(False)
        async with asyncio.timeout(30):
            await loop.sock_connect(client, ("127.0.0.1", proxy.settings.http_proxy_port))
            with suppress(ConnectionError):
                await loop.sock_sendall(client, _request(STREAM | {"max_tokens": 200}, "Connection: close\r\n"))
            with suppress(ConnectionError):
                while part := await loop.sock_recv(client, 65_536):
                    answer += part
    return answer


async def _first_line(proxy: RunningProxy) -> tuple[str, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
    writer.write(_request(STREAM | {"max_tokens": 1_000_000}))
    line = await asyncio.wait_for(reader.readline(), 30)
    return line.decode().split(" ")[1], writer


async def test_one_client_holds_no_more_than_its_part() -> None:
    async with running_proxy(max_connections_per_client=4) as proxy:
        held = [await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port) for _ in range(3)]
        assert (await proxy.get("/health")).status == 200  # the session's connection is the fourth
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 30)
        assert b" 429 " in answer
        assert b"too_many_connections" in answer
        assert b"Retry-After" in answer
        writer.close()
        assert b'reason="per_client"} 1.0' in (await proxy.get("/metrics")).body
        for _, one in held:
            one.close()
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 30)
        writer.close()


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], b" 200 "),
        ([b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"], b" 200 "),
        ([b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n"], b" 200 "),
        ([b"GET /ping?full=1 HTTP/1.1\r\nHost: x\r\n\r\n"], b" 200 "),
        ([b"GE", b"T /health HTTP/1.1\r\nHost: x\r\n", b"\r\n"], b" 200 "),
        ([b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"], b" 429 "),
        ([b"GET /health HTTP/1.1\r\nX: " + b"x" * 5000], b" 429 "),
        ([b"GET /hea"], b" 429 "),
        ([], b" 429 "),
    ],
)
async def test_probes_are_answered_where_there_is_no_room_for_others(parts: list[bytes], status: bytes) -> None:
    async with running_proxy(max_connections_per_client=1) as proxy:
        _, held = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
        await asyncio.sleep(0.05)
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.05)
            answer = await asyncio.wait_for(reader.read(), 30)  # the connection ends behind it
            writer.close()
            assert status in answer.splitlines()[0]
            assert answer.count(b"HTTP/1.1") == 1
        held.close()


@pytest.mark.parametrize("said", [b"", b"GET /hea", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_probes_get_through_a_flood_of_connections_that_are_refused(said: bytes) -> None:
    """Those that say nothing, begin like a probe, or do not read why they were refused."""
    async with running_proxy(max_connections_per_client=1) as proxy:
        port = proxy.settings.http_proxy_port
        flood = [await asyncio.open_connection("127.0.0.1", port)]
        for path in ("/health", "/ready", "/metrics") * 3:
            for _ in range(RESERVE):
                flood.append(await asyncio.open_connection("127.0.0.1", port))
                flood[-1][1].write(said)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            line = await asyncio.wait_for(reader.readline(), 30)
            writer.close()
            assert line.split()[1] == (b"503" if path == "/ready" else b"200"), line
        for _, one in flood:
            one.close()


@pytest.mark.parametrize("path", ["/health", "/v1/completions"])
async def test_a_connection_that_its_client_has_closed_counts_no_more(path: str) -> None:
    async with running_proxy(max_connections_per_client=2) as proxy:
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            status = (await asyncio.wait_for(reader.readline(), 30)).split()[1]
            writer.close()
            await asyncio.sleep(0.05)
            assert status in (b"200", b"405")


async def _large(proxy: RunningProxy, body: bytes) -> Reply:
    """As `post`, without aiohttp's warning about large bodies."""
    async with proxy.session.post(proxy.url + "/v1/completions", data=io.BytesIO(body)) as response:
        return Reply(response.status, response.headers.copy(), await response.read())


def test_connections_are_limited_in_total_and_per_client() -> None:
    room = Room(RESERVE + 60, 0)
    assert room.limit == 20
    assert [room.take("a") for _ in range(18)] == [None] * 18
    assert isinstance(room.take("a"), OutOfDescriptorsError)
    assert [room.take("b"), room.take("c")] == [None, None]
    assert isinstance(room.take("d"), OutOfDescriptorsError)
    room.give_back("a")
    assert room.take("d") is None
    room.measure(RESERVE + 1000)
    assert room.take("a") is None


def test_a_limit_per_client_holds_for_every_client() -> None:
    room = Room(RESERVE + 60, 2)
    assert [room.take("a"), room.take("a")] == [None, None]
    assert isinstance(room.take("a"), TooManyConnectionsError)
    assert room.take("b") is None


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:0:1:a::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:b::2", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a:b", "a:b"),
    ],
)
def test_a_client_is_an_address_or_an_ipv6_network(address: str, client: str) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize("part", [b"[1]", b'""'], ids=["lists", "strings"])
async def test_bodies_of_millions_of_prompts_hold_nobody_up(proxy: RunningProxy, part: bytes) -> None:
    await proxy.engine(Role.COMBINED)
    body = b'{"model":"%b","max_tokens":1,"prompt":[' % MODEL.encode() + b",".join([part] * 5_000_000) + b"]}"
    loop, lags, done = asyncio.get_running_loop(), [0.0], asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            start = loop.time()
            assert (await proxy.get("/health")).status == 200
            lags.append(loop.time() - start)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    replies = await asyncio.gather(*(_large(proxy, body) for _ in range(3)))
    done.set()
    await watching
    assert {reply.status for reply in replies} == {400}
    assert all("MAX_BODY_ITEMS" in reply.error["message"] for reply in replies)
    assert len(lags) > 2, "others are served meanwhile"


async def test_large_bodies_that_hold_little_are_served(proxy: RunningProxy) -> None:
    engine = await proxy.engine(Role.COMBINED)
    replies = [
        await _large(proxy, json.dumps(TEXT | {"prompt": prompt}).encode())
        for prompt in ("x" * 5_000_000, list(range(500_000)), ["[a]" * 500_000, "b"])
    ]
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert len(engine.calls) == 3
