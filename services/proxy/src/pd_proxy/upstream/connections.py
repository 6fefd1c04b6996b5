"""Connections to engines: one request at a time on each, kept a moment for the next."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, cast

from pd_proxy.protocol.wire import Body, ChunkedBody, EndlessBody, FramingError, answer_head, write_head
from pd_proxy.upstream.replies import BrokenOffError, ConnectTimedOutError, NotConnectedError, Reply, Sink

# vLLM's server (uvicorn) closes a connection that was idle for 5 s. A request that meets that close may or may not have
# been read, and must not be repeated under its id; so idle connections are given up well before.
KEEP_ALIVE_S: Final = 2.0


def _drop(data: bytes) -> None:
    """Before there is an answer nobody takes its body."""


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
        self._deliver: Callable[[bytes], None] = _drop
        self._shortcut: Callable[[bytes], bool] | None = None
        self._body: Body | None = None
        self._keep = True
        self._paused = False

    def request(self, path: str, headers: Mapping[str, str], body: bytes) -> "asyncio.Future[Reply]":
        """Send a POST; the future is for the head of its answer, or BrokenOffError. Whoever stops waiting calls `give_up`.

        Raises:
            BrokenOffError: if the connection has ended already.
        """
        lines = {"Host": self._address, "Accept-Encoding": "identity", "User-Agent": "pd-proxy", **headers}
        lines["Content-Length"] = str(len(body))
        head = write_head(f"POST {path} HTTP/1.1", lines)
        if self._transport is None or self._transport.is_closing():
            raise BrokenOffError
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(head + body)
        return self._answered

    def give_up(self, answered: "asyncio.Future[Reply]") -> None:
        """Close the connection, unless the answer has come; then it may serve somebody else already, and only the reply knows."""
        if answered is self._answered:
            self.abort()
        elif not answered.cancelled() and answered.exception() is None:
            answered.result().close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The engine sent something."""
        body, shortcut = self._body, self._shortcut
        if shortcut is not None and shortcut(data):
            return
        try:
            if body is None:
                self._read_head(data)
                return
            data = body.feed(data)
        except FramingError:
            self.abort()
            self._end(whole=False)
            return
        if data:
            self._deliver(data)
        if body.done:
            self._over(reusable=self._keep and body.reusable)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._pool.forget(self._address, self)
        self._transport = None
        self._end(whole=exc is None and isinstance(self._body, EndlessBody))

    @property
    def open(self) -> bool:
        """Whether a request may be written to it."""
        return self._transport is not None and not self._transport.is_closing()

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

    def deliver_to(self, sink: Sink) -> None:
        """Whom the body goes to from now on; as it came, as long as its sink likes that and chunks come whole."""
        self._deliver = sink.feed
        if isinstance(self._body, ChunkedBody):
            self._shortcut = sink.shortcut(self._body)

    def _read_head(self, data: bytes) -> None:
        self._head += data
        head = answer_head(self._head) if self._answered is not None else None
        if head is None:
            if self._answered is None:
                self.abort()  # nobody asked
            return
        rest, self._head = self._head[head.size :], b""
        answered, self._answered = self._answered, None
        if answered is None or answered.done():
            self.abort()  # whoever asked has just left
            return
        reply = self._reply = Reply(self, head.status)
        self._body, self._keep, self._deliver = head.body, head.keep_alive, reply.feed
        answered.set_result(reply)
        if rest:
            self.data_received(rest)
        elif head.body.done:
            self._over(reusable=self._keep)

    def _over(self, *, reusable: bool) -> None:
        reply, self._reply, self._body, self._shortcut = self._reply, None, None, None
        self.resume()
        if reusable:
            self._pool.give_back(self._address, self)
        else:
            self.abort()
        if reply is not None:
            reply.end(whole=True)

    def _end(self, *, whole: bool) -> None:
        reply, self._reply, self._body, self._shortcut = self._reply, None, None, None
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

    def take(self, address: str) -> Connection | None:
        """A connection that is free."""
        free = self._free.get(address)
        now = asyncio.get_running_loop().time()
        while free:
            connection = free.pop()
            if connection.open and now - connection.idle_since < KEEP_ALIVE_S:
                return connection
            connection.abort()
        return None

    async def connect(self, address: str) -> Connection:
        """A new connection.

        Raises:
            NotConnectedError: if the engine cannot be reached.
        """
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
