"""Connections to engines: one request at a time on each; idle ones are kept for a moment for the next request."""

import asyncio
import contextlib
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, cast

from pd_contracts.http_answers import AnswerReader, ProtocolError
from pd_proxy.protocol.wire import header_lines
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.access import OPEN, EngineAccess
from pd_proxy.upstream.replies import (
    BrokenOffError,
    ConnectTimedOutError,
    NotConnectedError,
    OwnFaultError,
    Reply,
    Sink,
    StaleError,
)

# vLLM's server (uvicorn) closes a connection that was idle for 5 s. A request that is sent at that moment may or may not have
# been read, and must not be repeated under its id. So idle connections are closed well before.
KEEP_ALIVE_S: Final = 2.0
# If a kept connection ends within this time after a request was sent, the engine had closed it before; if later, it had read the request.
STALE_S: Final = 1.0
# A timer that fires this much too late shows that this process stood still (no CPU, SIGSTOP), and says nothing about the engine.
LATE_S: Final = 0.5
# How many turns the event loop needs to close a connection's descriptor.
CLOSING_TURNS: Final = 3


def _drop(data: bytes) -> None:
    """Drop the body of an answer that is not awaited."""


def _acknowledge_less(transport: asyncio.BaseTransport) -> None:
    """Let the kernel acknowledge two chunks with one packet; a packet per chunk takes a fifth of the CPU time of a chunk.

    An acknowledgement that is 40 ms late ends this, so an engine that sends nothing before the acknowledgement waits once.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_QUICKACK"):  # Linux
        with contextlib.suppress(OSError):  # a system that refuses it works without it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)


class Connection(asyncio.Protocol):
    """One connection to an engine."""

    def __init__(self, pool: "Pool", address: str) -> None:
        self.idle_since = 0.0
        self.loop = asyncio.get_running_loop()
        self._kept = False  # it has served an earlier request
        self._asked_at = 0.0
        self._pool = pool
        self._address = address
        self._same = header_lines(
            {"Host": address, "Accept-Encoding": "identity", "User-Agent": "pd-proxy", **pool.access.headers}
        )
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Reply] | None = None
        self._reader = AnswerReader()
        self._reply: Reply | None = None
        self._deliver: Callable[[bytes], None] = _drop
        self._shortcut: Callable[[bytes], bool] | None = None
        self._paused = False

    def request(self, path: str, headers: Mapping[str, str], body: bytes) -> "asyncio.Future[Reply]":
        """Send a POST. The future gets the head of its answer, or BrokenOffError (a StaleError if it may be due to the connection alone).

        A caller that stops waiting calls `give_up`.

        Raises:
            BrokenOffError: if the connection has already ended.
        """
        head = f"POST {path} HTTP/1.1\r\n{self._same}{header_lines(headers)}Content-Length: {len(body)}\r\n\r\n"
        if self._transport is None or self._transport.is_closing():
            raise BrokenOffError
        self._answered, self._asked_at = self.loop.create_future(), self.loop.time()
        self._reader.next()
        self._transport.write(head.encode("latin-1") + body)
        return self._answered

    def give_up(self, answered: "asyncio.Future[Reply]") -> None:
        """Close the connection, unless the answer has arrived: then only its reply knows whether the connection already serves another request."""
        if answered is self._answered:
            self.abort()
        elif not answered.cancelled() and answered.exception() is None:
            answered.result().close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _acknowledge_less(transport)

    def data_received(self, data: bytes) -> None:
        shortcut = self._shortcut
        if shortcut is not None and shortcut(data):
            return
        reader = self._reader
        if self._reply is None and self._answered is None:
            self.abort()  # no request is waiting for an answer
            return
        try:
            body = reader.feed(data)
        except ProtocolError:
            self.abort()
            self._end(whole=False)
            return
        if self._reply is None and not (reader.status and self._begin(reader.status)):
            return
        if body:
            self._deliver(body)
        if reader.complete:
            self._over(reusable=reader.reusable)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self._address, self)
        self._transport = None
        if self._answered is not None and self._stale():
            self._pool.drop(self._address)  # the others were closed at the same time
            self._end(whole=False, error=StaleError())
        else:
            self._end(whole=self._reader.eof() and exc is None)
        self._reader.close()

    @property
    def open(self) -> bool:
        """Whether a request may be written to it."""
        return self._transport is not None and not self._transport.is_closing()

    def pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        self._kept = False  # what ends now does not end because of the engine
        if self._transport is not None:
            self._transport.abort()

    def deliver_to(self, sink: Sink) -> None:
        """Send the body to `sink` from now on; unparsed, as long as the sink accepts that and chunks arrive whole."""
        self._deliver = sink.feed
        self._shortcut = sink.shortcut(self._reader)

    def _begin(self, status: int) -> bool:
        """The head of an answer has arrived; returns whether a request waits for it."""
        answered, self._answered = self._answered, None
        if answered is None or answered.done():
            self.abort()  # the caller has just stopped waiting
            return False
        # Only refusals have Retry-After; reading all headers of every answer would cost time.
        retry_after = self._reader.head.headers.get("retry-after", "") if status >= 400 else ""
        reply = self._reply = Reply(self, status, retry_after)
        self._deliver = reply.feed
        answered.set_result(reply)
        return True

    def _stale(self) -> bool:
        """Whether the connection ended before the engine read the request on it, as far as that can be known."""
        late = self.loop.time() - self._asked_at
        return self._kept and not self._reader.begun and late < STALE_S

    def _over(self, *, reusable: bool) -> None:
        reply, self._reply, self._shortcut = self._reply, None, None
        self._kept = True
        self.resume()
        if reusable:
            self._pool.give_back(self._address, self)
        else:
            self.abort()
        if reply is not None:
            reply.end(whole=True)

    def _end(self, *, whole: bool, error: BrokenOffError | None = None) -> None:
        reply, self._reply, self._shortcut = self._reply, None, None
        answered, self._answered = self._answered, None
        if reply is not None:
            reply.end(whole=whole)
        if answered is not None and not answered.done():
            answered.set_exception(error or BrokenOffError())


class Pool:
    """Connections by address; the most recently used free one is taken first."""

    def __init__(self, connect_timeout_s: float, shortage: Shortage, access: EngineAccess = OPEN) -> None:
        self.access = access
        self.most = sys.maxsize  # with more connections than this none is kept
        self._connect_timeout_s = connect_timeout_s
        self._shortage = shortage
        self._free: dict[str, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def close(self) -> None:
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._all):
            connection.abort()

    def give_back(self, address: str, connection: Connection) -> None:
        """Make a connection available for another request."""
        if self._closed or len(self._all) > self.most:
            connection.abort()
            return
        connection.idle_since = connection.loop.time()
        self._free.setdefault(address, deque()).append(connection)
        if self._sweep is None:
            self._sweep = connection.loop.call_later(KEEP_ALIVE_S, self._close_idle)

    def forget(self, address: str, connection: Connection) -> None:
        self._all.discard(connection)
        free = self._free.get(address)
        if free is not None and connection in free:
            free.remove(connection)

    def take(self, address: str) -> Connection | None:
        free = self._free.get(address)
        while free:
            connection = free.pop()
            if connection.open and connection.loop.time() - connection.idle_since < KEEP_ALIVE_S:
                return connection
            connection.abort()
        return None

    async def connect(self, address: str) -> Connection:
        """A new connection.

        Raises:
            OwnFaultError: if this process can open no connection.
            NotConnectedError: if the engine cannot be reached.
        """
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        due = loop.time() + self._connect_timeout_s
        if len(self._all) >= self.most:
            await self._close_free()
        try:
            async with asyncio.timeout_at(due):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, address), host.strip("[]"), int(port), ssl=self.access.tls
                )
        except TimeoutError:
            if loop.time() - due > LATE_S:
                return await self.connect(address)
            raise ConnectTimedOutError from None
        except (OSError, ValueError) as error:
            # ValueError: a host name from a ping, such as "a..b", can fail in the IDNA codec
            if isinstance(error, OSError) and (own := self._shortage.own_fault(error)) is not None:
                if await self._close_free():
                    return await self.connect(address)
                raise OwnFaultError(own) from error
            raise NotConnectedError from error
        self._all.add(connection)
        return connection

    @property
    def size(self) -> int:
        """The number of connections."""
        return len(self._all)

    def drop(self, address: str) -> None:
        """Close the free connections to an address."""
        free = self._free.get(address)
        while free:
            free.pop().abort()

    async def _close_free(self) -> bool:
        """Close all free connections, to free their descriptors; returns whether there were any."""
        found = any(self._free.values())
        for address in self._free:
            self.drop(address)
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)
        return found

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for free in self._free.values():
            while free and now - free[0].idle_since >= KEEP_ALIVE_S:
                free.popleft().abort()
        self._free = {address: free for address, free in self._free.items() if free}
        self._sweep = loop.call_later(KEEP_ALIVE_S / 2, self._close_idle) if self._free else None
