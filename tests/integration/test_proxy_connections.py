"""Connections to engines that are bare sockets: which are kept, which are closed, and how a cut answer is treated."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.aio import until

import pd_proxy.upstream.connections
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.connections import LATE_S, Connection, Pool
from pd_proxy.upstream.replies import BrokenOffError, ConnectTimedOutError, NotConnectedError, Reply, StaleError

LIMIT = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Engine = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(name="pool")
async def _pool() -> AsyncIterator[Pool]:
    pool = Pool(5.0, Shortage(lambda _: None))
    yield pool
    pool.close()
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def engine(*answers: bytes, hold: bool = True) -> AsyncIterator[tuple[str, list[int]]]:
    """An engine that gives these answers, one per request; yields its address and the connection of each request."""
    connections: list[int] = []
    left = list(answers)
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                await reader.readuntil(b"\r\n\r\n{}")
                connections.append(writer.get_extra_info("peername")[1])
                writer.write(left.pop(0))
                if not hold and not left:
                    break
        if not hold:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
        for writer in writers:
            writer.close()


async def ask(pool: Pool, address: str) -> Reply:
    async with asyncio.timeout(30):
        connection = pool.take(address) or await pool.connect(address)
        answered = connection.request("/x", {"X-Request-Id": "1"}, b"{}")
        try:
            return await answered
        except asyncio.CancelledError:
            connection.give_up(answered)
            raise


async def test_a_connection_serves_the_next_request(pool: Pool) -> None:
    async with engine(OK, OK, OK) as (address, connections):
        for _ in range(3):
            assert await (await ask(pool, address)).read(LIMIT) == b"ok"
        assert len(set(connections)) == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux has this option")
async def test_chunks_are_not_acknowledged_one_by_one(pool: Pool) -> None:
    async with engine() as (address, _):
        host, port = address.split(":")
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: Connection(pool, address), host, int(port)
        )
        assert not transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
        transport.close()


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"more",
        OK.replace(b"Content", b"Connection: close\r\nContent"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore",
    ],
)
async def test_a_connection_that_is_not_clean_serves_no_other(pool: Pool, answer: bytes) -> None:
    async with engine(answer, OK) as (address, connections):
        for _ in range(2):
            assert await (await ask(pool, address)).read(LIMIT) == b"ok"
        assert len(set(connections)) == 2


async def test_idle_connections_are_given_up_before_the_engine_does(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pd_proxy.upstream.connections, "KEEP_ALIVE_S", 0.1)
    async with engine(OK, OK) as (address, connections):
        await (await ask(pool, address)).read(LIMIT)
        await asyncio.sleep(0.25)
        await (await ask(pool, address)).read(LIMIT)
        assert len(set(connections)) == 2


async def test_a_body_that_ends_with_the_connection_is_whole(pool: Pool) -> None:
    async with engine(b"HTTP/1.1 200 OK\r\n\r\nok", hold=False) as (address, _):
        assert await (await ask(pool, address)).read(LIMIT) == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nno size\r\n",
    ],
)
async def test_a_cut_body_is_no_body(pool: Pool, answer: bytes) -> None:
    async with engine(answer, hold=False) as (address, _):
        with pytest.raises(BrokenOffError):
            await asyncio.wait_for((await ask(pool, address)).read(LIMIT), 30)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
async def test_a_cut_head_is_no_answer(pool: Pool, answer: bytes) -> None:
    async with engine(answer, hold=False) as (address, _):
        with pytest.raises(BrokenOffError):
            await ask(pool, address)


@contextlib.asynccontextmanager
async def closing(last: bytes = b"", *, answers: int = 1, after_s: float = 0.0) -> AsyncIterator[str]:
    """An engine that gives so many answers on each connection; when the next request has arrived, it writes `last` and closes it."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for _ in range(answers):
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(OK)
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(last)
            await asyncio.sleep(after_s)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.close()


async def test_a_kept_connection_that_ends_without_a_byte_is_stale_and_so_are_the_others(pool: Pool) -> None:
    async with closing() as address:
        for reply in await asyncio.gather(*(ask(pool, address) for _ in range(3))):
            await reply.read(LIMIT)
        assert pool.size == 3
        with pytest.raises(StaleError):
            await ask(pool, address)
        assert pool.take(address) is None
        assert await (await ask(pool, address)).read(LIMIT) == b"ok"


async def test_a_connection_that_may_have_ended_because_of_the_request_is_not_stale(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def second(address: str) -> type[Exception]:
        with contextlib.suppress(BrokenOffError):
            await (await ask(pool, address)).read(LIMIT)
        with pytest.raises(BrokenOffError) as failure:
            await ask(pool, address)
        return failure.type

    async with closing(answers=0) as address:
        assert await second(address) is BrokenOffError, "a new connection"
    async with closing(b"HTTP/1.1 2") as address:
        assert await second(address) is BrokenOffError, "a byte of the answer has come"
    async with closing() as address:
        assert await second(address) is StaleError
    monkeypatch.setattr(pd_proxy.upstream.connections, "STALE_S", 0.02)
    async with closing(after_s=0.1) as address:
        assert await second(address) is BrokenOffError, "the engine has had the request for a while"


async def test_a_request_that_is_given_up_closes_no_other_connection(pool: Pool) -> None:
    async with engine(OK, OK, b"") as (address, connections):
        for reply in await asyncio.gather(*(ask(pool, address) for _ in range(2))):
            await reply.read(LIMIT)
        waiting = asyncio.create_task(ask(pool, address))
        await until(lambda: len(connections) == 3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: pool.size == 1)
        assert pool.take(address) is not None


async def test_a_caller_that_stops_waiting_closes_the_connection(pool: Pool) -> None:
    async with engine(b"", OK) as (address, connections):
        waiting = asyncio.create_task(ask(pool, address))
        await until(lambda: connections)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await (await ask(pool, address)).read(LIMIT) == b"ok"
        assert len(set(connections)) == 2


async def test_an_engine_that_cannot_be_reached_is_an_error(pool: Pool) -> None:
    async with engine() as (address, _):
        pass
    for place in (address, "a..b:80", "127.0.0.1:port"):
        with pytest.raises(NotConnectedError):
            await ask(pool, place)


async def test_a_connection_that_is_not_accepted_times_out() -> None:
    pool = Pool(1e-9, Shortage(lambda _: None))
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConnectTimedOutError):
        await ask(pool, f"127.0.0.1:{listener.getsockname()[1]}")
    pool.close()


async def test_a_connection_is_not_given_up_because_the_proxy_stood_still() -> None:
    pool = Pool(0.05, Shortage(lambda _: None))
    async with engine(OK) as (address, _):
        asyncio.get_running_loop().call_soon(time.sleep, 2 * LATE_S)
        assert (await pool.connect(address)).open
    pool.close()


async def test_a_reader_that_is_slow_makes_the_engine_wait(pool: Pool) -> None:
    size = 50_000_000
    async with engine(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)) as (address, _):
        reply = await ask(pool, address)
        await asyncio.sleep(0.3)
        first = len(await reply.readany())
        assert first < size / 10
        rest = 0
        while data := await asyncio.wait_for(reply.readany(), 30):
            rest += len(data)
        assert first + rest == size
        assert reply.finished
