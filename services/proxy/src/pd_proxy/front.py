"""The socket that clients connect to: requests for tokens are served here, every other connection becomes Hypercorn's.

A token costs microseconds here and ten times that on its way through a server, a queue, a task and a framework. So a connection is
read by `wire.request_head`, which understands only requests for tokens, and only plain ones. Anything else, also a later
request of a connection, goes with every byte that was not used yet to Hypercorn, which serves the same routes, and keeps the
connection to its end. What both do with a request is in `serving`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import Final, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from pd_contracts import sse
from pd_proxy.answers import Stream
from pd_proxy.app import Proxy, end
from pd_proxy.errors import HttpError, ProxyError
from pd_proxy.relay import Relay
from pd_proxy.serving import (
    EVENTS,
    JSON,
    answer,
    begin,
    check_authorization,
    last_events,
    response_headers,
    stream_headers,
    whole_headers,
)
from pd_proxy.trace import Trace
from pd_proxy.wire import LAST_CHUNK, RequestHead, may_become_ours, request_head, write_chunk, write_head

logger = logging.getLogger(__name__)

# As Quart: a body that is still not here then will not come.
BODY_TIMEOUT_S: Final = 60.0
# What a client may send ahead while its request is served.
PIPELINED_BYTES: Final = 64 * 1024
SWEEP_S: Final = 1.0


async def serve_front(app: Proxy, config: Config, shutdown: Callable[[], Awaitable[None]]) -> None:
    """Serve until `shutdown` returns, then let running requests end within the configuration's graceful timeout.

    Raises:
        OSError: if the port cannot be opened.
    """
    front = Front(app, config)
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Client(front), sock=sock, backlog=config.backlog)
        for sock in config.create_sockets().insecure_sockets
    ]
    await app.startup()
    sweeping = loop.create_task(front.sweep())
    try:
        await shutdown()
    finally:
        for server in servers:
            server.close()
        sweeping.cancel()
        await front.finish()
        await app.shutdown()


class Front:
    """What the connections share."""

    def __init__(self, app: Proxy, config: Config) -> None:
        """Nobody is connected yet."""
        self.app = app
        self.context = app.context
        self.config = config
        self.clients: set[Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._worker = WorkerContext(None)
        self._wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
        self._date = (0, "")

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Make Hypercorn serve a connection, beginning with `data`."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, self._hypercorn)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def _hypercorn(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.tasks.add(task)
        try:
            loop = asyncio.get_running_loop()
            await TCPServer(self._wrapped, loop, self.config, self._worker, {}, reader, writer)
        finally:
            self.tasks.discard(task)

    def date(self) -> str:
        """The time as HTTP writes it, in whole seconds."""
        now = int(asyncio.get_running_loop().time())
        if now != self._date[0]:
            self._date = (now, formatdate(usegmt=True))
        return self._date[1]

    async def sweep(self) -> None:
        """End the connections that are idle for too long, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = asyncio.get_running_loop().time()
            for client in list(self.clients):
                client.expire(now)

    async def finish(self) -> None:
        """Serve no new requests, let the running ones end, then cancel them."""
        self.stopping = True
        await self._worker.terminated.set()
        for client in list(self.clients):
            client.stop()
        loop = asyncio.get_running_loop()
        last = loop.time() + self.config.graceful_timeout
        while self.tasks and loop.time() < last:
            await asyncio.wait(self.tasks, timeout=last - loop.time())
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for client in list(self.clients):
            client.close()


class Client(asyncio.Protocol):
    """One connection, as long as it asks for nothing but tokens."""

    def __init__(self, front: Front) -> None:
        """Not connected yet."""
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._task: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._keep_alive = True
        self._answering = False
        self._write_paused = False
        self._read_paused = False
        self._deadline = 0.0
        self._arrived = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._front.clients.add(self)
        self._wait(self._front.config.keep_alive_timeout)

    def data_received(self, data: bytes) -> None:
        """It sent something."""
        self._buffer += data
        if self._task is None:
            self._advance()
        elif len(self._buffer) > PIPELINED_BYTES and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """It will send no more; as for Hypercorn, that means that it left."""
        if self._task is not None:
            self._task.cancel()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  it left, whatever the reason
        """It left."""
        self._front.clients.discard(self)
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """It takes less than it is sent."""
        self._write_paused = True
        if self._relay is not None:
            self._relay.pause()

    def resume_writing(self) -> None:
        """It has taken what it was sent."""
        self._write_paused = False
        if self._relay is not None:
            self._relay.resume()
        elif self._task is None:
            self._advance()

    def expire(self, now: float) -> None:
        """End it if nothing came for too long and nothing is being served."""
        if self._task is None and now > self._deadline and self._transport is not None:
            if self._head is not None and not self._transport.is_closing():
                self._refuse(HttpError(408, "the request body did not come in time"), None)
                self._head, self._buffer = None, bytearray()
                self.close()
            else:
                self._transport.abort()

    def stop(self) -> None:
        """Take no more requests; one whose head is here still gets its answer."""
        if self._task is None and self._head is None:
            self.close()

    def close(self) -> None:
        """Close the connection after what was written."""
        if self._transport is not None:
            self._transport.close()
            self._wait(self._front.config.keep_alive_timeout)

    def _wait(self, timeout_s: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + timeout_s

    def _advance(self) -> None:
        """Serve the next request if it is here; let Hypercorn see what is no request for tokens."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._write_paused or not self._buffer:
            return
        if self._head is None and not self._read_head(transport):
            return
        head = cast("RequestHead", self._head)
        size = head.size + head.length
        if len(self._buffer) < size:
            return
        body = bytes(memoryview(self._buffer)[head.size : size])
        del self._buffer[:size]
        self._head = None
        self._answering, self._keep_alive = False, head.keep_alive
        self._task = asyncio.get_running_loop().create_task(self._serve(head, body))
        self._front.tasks.add(self._task)
        self._task.add_done_callback(self._served)

    def _read_head(self, transport: asyncio.Transport) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and may_become_ours(self._buffer):
            return False
        head = request_head(self._buffer, end + 4) if end >= 0 else None
        if head is None or head.length > self._front.context.settings.max_body_bytes:
            self._front.clients.discard(self)
            self._transport = None
            self._front.hand_over(transport, bytes(self._buffer))
            return False
        self._head, self._arrived = head, monotonic()
        self._wait(BODY_TIMEOUT_S)
        return True

    async def _serve(self, head: RequestHead, body: bytes) -> None:
        context = self._front.context
        trace: Trace | None = None

        def header(name: str) -> str:
            return head.headers.get(name, "")

        try:
            check_authorization(context, header("authorization"))
            trace = begin(context, head.path, header)
            trace.arrived = self._arrived
            found = await answer(context, trace, header, body)
            if isinstance(found, Stream):
                await self._stream(found, trace)
            else:
                headers = {"Content-Type": JSON, **whole_headers(trace), "Content-Length": str(len(found.body))}
                self._write(self._response(200, headers) + found.body)
        except ProxyError as error:
            self._refuse(error, trace)
        finally:
            if trace is not None:
                end(context, trace)

    async def _stream(self, stream: Stream, trace: Trace) -> None:
        headers = {"Content-Type": EVENTS, **stream_headers(trace), "Transfer-Encoding": "chunked"}
        self._write(self._response(200, headers))
        relay = self._relay = stream.relay(self._write_chunk)
        if self._write_paused:
            relay.pause()
        try:
            await relay.done
        except ProxyError as error:
            trace.fail(error)
            last = sse.encode_event(error.body())
            self._keep_alive = self._keep_alive and not self._write_paused
        else:
            last = last_events(stream, trace)
        finally:
            self._relay = None
        self._write(write_chunk(last) + LAST_CHUNK)

    def _served(self, task: "asyncio.Task[None]") -> None:
        """A request is over, one way or another."""
        self._front.tasks.discard(task)
        self._task = None
        transport = self._transport
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a request failed for no known reason", exc_info=error)
            if not self._answering:
                self._refuse(HttpError(500, "internal server error"), None)
            self._keep_alive = False
        if transport is None:
            return
        if task.cancelled() or (error is not None and self._answering):
            transport.abort()
        elif not self._keep_alive or self._front.stopping:
            self.close()
        else:
            self._wait(self._front.config.keep_alive_timeout)
            if self._read_paused:
                self._read_paused = False
                transport.resume_reading()
            self._advance()

    def _refuse(self, error: ProxyError, trace: Trace | None) -> None:
        headers = {"Content-Type": JSON, **error.headers}
        if trace is not None:
            trace.fail(error)
            headers |= response_headers(trace)
        body = error.body()
        headers["Content-Length"] = str(len(body))
        self._write(self._response(error.status, headers) + body)

    def _response(self, status: int, headers: dict[str, str]) -> bytes:
        self._answering = True
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""  # an engine may have statuses of its own
        headers["Date"] = self._front.date()
        if not self._keep_alive:
            headers["Connection"] = "close"
        return write_head(f"HTTP/1.1 {status} {phrase}", headers)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _write_chunk(self, block: bytes) -> None:
        if self._transport is not None:
            self._transport.write(b"%x\r\n%b\r\n" % (len(block), block))
