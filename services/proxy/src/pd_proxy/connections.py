"""Connections to engines: one request at a time on each, kept a moment for the next, and answers that say when bytes come.

An answer is read by `read`, `readany`, or, where every microsecond a chunk counts, by a sink that gets the bytes in the very
callback in which they arrive.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol, cast

from pd_proxy.wire import Body, EndlessBody, FramingError, answer_head, write_head

# vLLM's server (uvicorn) closes a connection that was idle for 5 s. A request that meets that close may or may not have
# been read, and must not be repeated under its id; so idle connections are given up well before.
KEEP_ALIVE_S: Final = 2.0
READ_AHEAD_BYTES: Final = 256 * 1024


class BrokenOffError(ConnectionError):
    """The connection ended before the answer did, or what came is no answer."""


class NotConnectedError(ConnectionError):
    """There never was a connection."""


class ConnectTimedOutError(NotConnectedError):
    """Nobody took the connection in time."""


class Sink(Protocol):
    """Takes the body of an answer as it comes; `ended` is called once, with False if the body was cut."""

    def feed(self, data: bytes) -> None:
        """Some bytes."""

    def ended(self, *, whole: bool) -> None:
        """No more."""


class Reply:
    """An answer of which the head is here; `finished` says that all of it has come."""

    __slots__ = ("_connection", "_parts", "_sink", "_size", "_waiter", "broken", "finished", "status")

    def __init__(self, connection: "Connection", status: int) -> None:
        """Made by the connection."""
        self.status = status
        self.finished = False
        self.broken = False
        self._connection: Connection | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            BrokenOffError: if it is cut.
        """
        while not self.finished:
            if self.broken:
                raise BrokenOffError
            await self._wait()
        return self._take()

    async def readany(self) -> bytes:
        """Some of the body; empty at its end.

        Raises:
            BrokenOffError: if it is cut.
        """
        while not self._parts:
            if self.broken:
                raise BrokenOffError
            if self.finished:
                return b""
            self.resume()
            await self._wait()
        data = self._take()
        self.resume()
        return data

    def connect(self, sink: Sink) -> None:
        """Give everything that came and comes to `sink`."""
        self._sink = sink
        if self._parts:
            sink.feed(self._take())
        self.resume()
        if self.finished or self.broken:
            sink.ended(whole=self.finished)

    def pause(self) -> None:
        """Let the engine wait: nobody takes what it sends."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Take more again."""
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Let go; before the end of the answer this closes the connection, which aborts the request at the engine."""
        connection, self._connection = self._connection, None
        if connection is not None and not self.finished:
            connection.abort()
            self.end(whole=False)

    def feed(self, data: bytes) -> None:
        """The connection got some of the body."""
        if self._sink is not None:
            self._sink.feed(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > READ_AHEAD_BYTES:
            self.pause()
        self._wake()

    def end(self, *, whole: bool) -> None:
        """The connection got the end of it, or its own."""
        if self.finished or self.broken:
            return
        self.finished, self.broken = whole, not whole
        self._connection = None
        if self._sink is not None:
            self._sink.ended(whole=whole)
        self._wake()

    def _take(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection to an engine."""

    def __init__(self, pool: "Pool", address: str) -> None:
        """It is opened by its pool."""
        self.idle_since = 0.0
        self._pool = pool
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Reply] | None = None
        self._head = b""
        self._reply: Reply | None = None
        self._body: Body | None = None
        self._keep = True
        self._paused = False

    async def request(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send a POST and wait for the head of its answer; whoever stops waiting closes the connection.

        Raises:
            BrokenOffError: if the connection ends first.
        """
        lines = {"Host": self._address, "Accept-Encoding": "identity", "User-Agent": "pd-proxy", **headers}
        lines["Content-Length"] = str(len(body))
        head = write_head(f"POST {path} HTTP/1.1", lines)
        if self._transport is None or self._transport.is_closing():
            raise BrokenOffError
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._answered = answered
        self._transport.write(head + body)
        try:
            return await answered
        except asyncio.CancelledError:
            # Once the head is here, this connection may serve somebody else already; only the reply knows.
            if answered.cancelled():
                self.abort()
            else:
                answered.result().close()
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The engine sent something."""
        try:
            if self._body is not None:
                self._read_body(data)
            elif self._answered is not None:
                self._read_head(data)
            else:
                self.abort()  # nobody asked
        except FramingError:
            self.abort()
            self._end(whole=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._pool.forget(self._address, self)
        self._transport = None
        self._end(whole=exc is None and isinstance(self._body, EndlessBody))

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def _read_head(self, data: bytes) -> None:
        self._head += data
        head = answer_head(self._head)
        if head is None:
            return
        rest, self._head = self._head[head.size :], b""
        self._body, self._keep = head.body, head.keep_alive
        self._reply = Reply(self, head.status)
        answered, self._answered = self._answered, None
        if answered is None or answered.done():
            self.abort()  # whoever asked has just left
            return
        answered.set_result(self._reply)
        if rest or head.body.done:
            self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        body, reply = self._body, self._reply
        if body is None or reply is None:
            return
        if not body.done:
            data = body.feed(data)
            if data:
                reply.feed(data)
        if body.done:
            self._over(reply, reusable=self._keep and body.reusable)

    def _over(self, reply: Reply, *, reusable: bool) -> None:
        self._reply = self._body = None
        self.resume()
        if reusable:
            self._pool.give_back(self._address, self)
        else:
            self.abort()
        reply.end(whole=True)

    def _end(self, *, whole: bool) -> None:
        reply, self._reply, self._body = self._reply, None, None
        answered, self._answered = self._answered, None
        if reply is not None:
            reply.end(whole=whole)
        if answered is not None and not answered.done():
            answered.set_exception(BrokenOffError())


class Pool:
    """Connections by address, those that are free most recently used first."""

    def __init__(self, connect_timeout_s: float) -> None:
        """Nothing is opened yet."""
        self._connect_timeout_s = connect_timeout_s
        self._free: dict[str, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, address: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send a request and wait for the head of its answer.

        Raises:
            NotConnectedError: if the engine cannot be reached.
            BrokenOffError: if it closes the connection instead.
        """
        return await (self._take(address) or await self._connect(address)).request(path, headers, body)

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._all):
            connection.abort()

    def give_back(self, address: str, connection: Connection) -> None:
        """It is free for another request."""
        if self._closed:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._free.setdefault(address, deque()).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(KEEP_ALIVE_S, self._close_idle)

    def forget(self, address: str, connection: Connection) -> None:
        """It was closed."""
        self._all.discard(connection)
        free = self._free.get(address)
        if free is not None and connection in free:
            free.remove(connection)

    def _take(self, address: str) -> Connection | None:
        free = self._free.get(address)
        if not free:
            return None
        connection = free.pop()
        if asyncio.get_running_loop().time() - connection.idle_since < KEEP_ALIVE_S:
            return connection
        connection.abort()
        return None

    async def _connect(self, address: str) -> Connection:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, address), host.strip("[]"), int(port)
                )
        except TimeoutError:
            raise ConnectTimedOutError from None
        except (OSError, ValueError) as error:
            # ValueError: a host name that anybody may have pinged, such as "a..b", fails in the IDNA codec
            raise NotConnectedError from error
        self._all.add(connection)
        return connection

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for free in self._free.values():
            while free and now - free[0].idle_since >= KEEP_ALIVE_S:
                free.popleft().abort()
        self._free = {address: free for address, free in self._free.items() if free}
        self._sweep = loop.call_later(KEEP_ALIVE_S / 2, self._close_idle) if self._free else None
