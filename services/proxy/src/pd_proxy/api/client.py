"""One client's connection, as long as it only asks for tokens; `front` explains why this exists."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic
from typing import Final, Protocol, cast

from hypercorn.config import Config

from pd_contracts.http_answers import MAX_HEAD_BYTES
from pd_proxy.api import cors
from pd_proxy.api.antechamber import may_be_probe
from pd_proxy.api.app import end, let_go
from pd_proxy.api.farewell import Farewell
from pd_proxy.api.unread import drop
from pd_proxy.api.unsent import Unsent
from pd_proxy.context import LAST_CALL_S, Context
from pd_proxy.errors import HttpError, ProxyError, SlowClientError
from pd_proxy.protocol.wire import (
    LAST_CHUNK,
    RequestHead,
    may_become_head,
    request_head,
    write_chunk,
    write_head,
)
from pd_proxy.request.serving import (
    EVENTS,
    JSON,
    answer,
    begin,
    check_authorization,
    delivered,
    error_of,
    last_events,
    response_headers,
    stream_headers,
    whole_headers,
)
from pd_proxy.request.trace import Trace
from pd_proxy.uploads import Upload
from pd_proxy.upstream.answers import Stream
from pd_proxy.upstream.relay import Relay

logger = logging.getLogger(__name__)

MAX_PROBE_BYTES: Final = 4096
# How long a connection for which there is no room may take to say that it is a probe.
PROBE_S: Final = 1.0
# How often to look whether a slow client has taken its answer.
LOOK_S: Final = 0.05
# How many bytes a client may send ahead while its request is served, or while it does not read its answers.
PIPELINED_BYTES: Final = 64 * 1024
PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class Front(Protocol):
    """What a connection needs of what all connections share; implemented in `front`."""

    loop: asyncio.AbstractEventLoop
    context: Context
    config: Config
    clients: "set[Client]"
    tasks: set[asyncio.Task[None]]
    stopping: bool

    def enter(self, transport: asyncio.Transport) -> ProxyError | None:
        """Count a connection; returns the error for its client if there is no room for it."""
        ...

    def wait_outside(self, transport: asyncio.Transport, leave: Callable[[], None]) -> bool:
        """Keep a connection for which there is no room until its client has said what it wants, or `leave` is called. Returns False if it must end at once."""
        ...

    def leave(self, transport: asyncio.Transport) -> None: ...

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Make Hypercorn serve a connection, beginning with `data`."""
        ...

    def date(self) -> str:
        """The value of the Date header, in whole seconds."""
        ...


class Client(asyncio.Protocol):
    """The protocol of the connection."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._asked: RequestHead | None = None  # the request that is being answered
        self._task: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._keep_alive = True
        self._answering = False
        self._write_paused = False
        self._read_paused = False
        self._unsent: Unsent | None = None
        self._delivering = False  # an answer is written, and the client has not taken all of it
        self._has_everything = False
        self._upload: Upload | None = None  # the part of a request that has arrived
        self._no_room: ProxyError | None = None  # why this connection gets no answer but to a probe
        self._seen = 0  # bytes already searched for the end of a head
        self._deadline = 0.0
        self._arrived = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._no_room = self._front.enter(self._transport)
        if self._no_room is not None and not self._front.wait_outside(self._transport, self._leave_at_once):
            self._leave_at_once()
            return
        self._front.clients.add(self)
        self._unsent = Unsent(self._transport, self._front.context.settings.client_stall_timeout_s)
        self._wait(self._front.config.keep_alive_timeout if self._no_room is None else PROBE_S)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._no_room is not None:
            self._hear(self._no_room)
        elif self._task is None:
            self._advance()
            if self._task is None and self._buffer:
                self._arrives()
        self._pace()

    def eof_received(self) -> None:
        """The client will send no more. That counts as having left, as in Hypercorn."""
        self._has_everything = self._delivering and self._unsent is not None and not self._unsent.size
        if self._task is not None and not self._has_everything:
            self._task.cancel()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  it left, whatever the reason
        self._front.clients.discard(self)
        transport, self._transport = self._transport, None
        self._arrived_whole()
        if transport is not None:
            self._front.leave(transport)
        if self._task is not None:
            if not self._has_everything:
                self._task.cancel()
        elif self._head is not None:
            self._give_up(None)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent data."""
        self._write_paused = True
        if self._relay is not None:
            self._relay.pause()

    def resume_writing(self) -> None:
        """The client has read what it was sent."""
        self._write_paused = False
        if self._relay is not None:
            self._relay.resume()
        elif self._task is None:
            self._advance()
            self._pace()

    def expire(self, now: float) -> None:
        """End the connection if nothing arrived for too long and nothing is being served."""
        if self._task is not None or now <= self._deadline or self._transport is None or self._unsent is None:
            return
        if self._no_room is not None:
            self._turn_away(self._no_room)
            return
        if self._head is not None and not self._transport.is_closing():
            limit = self._front.context.settings.upload_idle_timeout_s
            self._give_up(HttpError(408, f"no part of the request body arrived for {limit:g} s"))
            self._say_goodbye()
        elif not self._unsent.size or self._unsent.stalled(now):
            self._transport.abort()

    def stop(self) -> None:
        """End the connection with its next answer, or soon if no request comes; one that has begun to arrive still gets its answer."""
        if self._task is None:
            self._front.loop.call_later(LAST_CALL_S, self._leave_if_idle)

    def _leave_if_idle(self) -> None:
        if self._task is None and self._head is None:
            self.close()

    def close(self) -> None:
        """Close the connection after what has been written."""
        if self._transport is None:
            return
        self._wait(self._front.config.keep_alive_timeout)
        if self._buffer:
            self._say_goodbye()
        else:
            self._transport.close()

    def _say_goodbye(self) -> None:
        """Close the connection, but let a client that is still sending read its answer."""
        self._buffer = bytearray()
        self._arrived_whole()
        if self._transport is not None and not self._transport.is_closing():
            Farewell(self._transport, self.connection_lost)

    def _wait(self, timeout_s: float) -> None:
        self._deadline = self._front.loop.time() + timeout_s

    def _arrives(self) -> None:
        """A request has arrived in part. Its memory counts, because a client may take any time to send the rest."""
        if self._upload is None:
            self._upload = self._front.context.uploads.begin(self._make_room)
        self._upload.holds(len(self._buffer))

    def _arrived_whole(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.end()

    def _make_room(self, error: ProxyError) -> None:
        """The request that is arriving has held memory for too long."""
        if self._head is not None:
            self._give_up(error)
            self._say_goodbye()
        else:
            self._turn_away(error)

    def _pace(self) -> None:
        """Stop reading while enough waits in the buffer for a request to end, or for the client to read its answers."""
        full = len(self._buffer) > PIPELINED_BYTES and (self._task is not None or self._write_paused)
        if full is not self._read_paused and self._transport is not None:
            self._read_paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _advance(self) -> None:
        """Serve the next request if it has arrived; give Hypercorn what is not a request for tokens."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._write_paused or not self._buffer:
            return
        head = self._head or self._read_head(transport)
        if head is None:
            return
        size = head.size + head.length
        if len(self._buffer) < size:
            self._wait(self._front.context.settings.upload_idle_timeout_s)
            return
        body = bytes(memoryview(self._buffer)[head.size : size])
        del self._buffer[:size]
        self._head = None
        if self._upload is not None:
            self._arrived_whole()
        self._answering, self._keep_alive, self._asked = False, head.keep_alive, head
        self._task = self._front.loop.create_task(self._serve(head, body))
        self._front.tasks.add(self._task)
        self._task.add_done_callback(self._ended)

    def _read_head(self, transport: asyncio.Transport) -> RequestHead | None:
        while self._buffer.startswith(b"\r\n"):  # some clients send a line end behind a body (RFC 9112, 2.2)
            del self._buffer[:2]
            self._seen = 0
        if not self._buffer or self._buffer == b"\r":
            return None
        before, self._seen = self._seen, len(self._buffer)
        end = self._buffer.find(b"\r\n\r\n", max(0, before - 3)) + 4
        if end < 4:
            if self._seen >= MAX_HEAD_BYTES:
                self._turn_away(HttpError(431, f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"))
            elif not may_become_head(self._buffer, before):
                self._hand_over(transport)
            return None
        self._seen = 0
        if end > MAX_HEAD_BYTES:
            self._turn_away(HttpError(431, f"the head of the request is larger than {MAX_HEAD_BYTES} bytes"))
            return None
        head = request_head(self._buffer, end)
        if head is None or head.length > self._front.context.settings.max_body_bytes:
            self._hand_over(transport)
            return None
        self._head, self._arrived = head, monotonic()
        return head

    def _hear(self, no_room: ProxyError) -> None:
        """Answer a probe once, and turn everything else away."""
        head = bytes(self._buffer[: MAX_PROBE_BYTES + 1])
        if self._transport is None or len(head) > MAX_PROBE_BYTES or not may_be_probe(head):
            self._turn_away(no_room)
        elif b"\r\n\r\n" in head:
            line, _, rest = head.partition(b"\r\n")
            self._buffer = bytearray(line + b"\r\nConnection: close\r\n" + rest)
            self._hand_over(self._transport)

    def _hand_over(self, transport: asyncio.Transport) -> None:
        self._front.clients.discard(self)
        self._arrived_whole()
        self._transport = None  # the connection goes on, so this object must not report its end
        if self._read_paused:
            transport.resume_reading()
        self._front.hand_over(transport, bytes(self._buffer))

    def _leave_at_once(self) -> None:
        """Make room for another client's connection, which may be a probe."""
        if self._transport is None or self._no_room is None:
            return
        if not self._answering:
            self._keep_alive = False
            self._refuse(self._no_room, None)
        drop(self._transport)
        self._transport.close()

    def _turn_away(self, error: ProxyError) -> None:
        """Say why this connection cannot be served, and close it."""
        if isinstance(error, HttpError):
            self._front.context.refused.noted(error.status, error.message)
        self._keep_alive = False
        self._refuse(error, None)
        self._say_goodbye()

    def _give_up(self, error: ProxyError | None) -> None:
        """Count a request whose body will not arrive; a client that is still there gets `error`."""
        head, self._head = cast("RequestHead", self._head), None
        self._asked = head
        trace = begin(self._front.context, head.path, head.headers)
        trace.arrived = self._arrived
        if error is not None:
            self._refuse(error, trace)
        end(self._front.context, trace)

    async def _serve(self, head: RequestHead, body: bytes) -> None:
        context = self._front.context
        trace: Trace | None = None

        try:
            check_authorization(context, head.path, head.headers)
            trace = begin(context, head.path, head.headers)
            trace.arrived = self._arrived
            found = await answer(context, trace, head.headers, body)
            if isinstance(found, Stream):
                await self._stream(found, trace)
            else:
                headers = {"Content-Type": JSON, **whole_headers(trace), "Content-Length": str(len(found.body))}
                self._write(self._response(200, headers) + found.body)
                del found  # a slow client must not hold a large answer twice
            if self._write_paused:
                await self._taken(trace)
            delivered(trace)
        except ProxyError as error:
            self._refuse(error, trace)
        finally:
            if trace is not None:
                end(context, trace)
        self._served()

    async def _taken(self, trace: Trace) -> None:
        """Wait until a slow client has read the whole answer, as long as it makes progress; the engine need not wait."""
        let_go(trace)
        unsent, self._delivering = self._unsent, True
        while self._transport is not None and unsent is not None and unsent.size:
            if unsent.stalled(self._front.loop.time()):
                trace.fail(SlowClientError("the client does not read its answer"))
                self._transport.abort()
                break
            await asyncio.sleep(LOOK_S)
        self._delivering = False

    async def _stream(self, stream: Stream, trace: Trace) -> None:
        head = self._response(200, {"Content-Type": EVENTS, **stream_headers(trace), "Transfer-Encoding": "chunked"})
        while (block := stream.whole()) is None:
            error = await self._relayed(stream, head)
            head = b""
            if error is None:
                break
            successor = await stream.resume(error)
            if successor is None:
                trace.fail(error)
                self._keep_alive = self._keep_alive and not self._write_paused
                self._write(write_chunk(stream.error_event(error)) + LAST_CHUNK)
                return
            stream = trace.answer = successor
        self._write(head + write_chunk((block or b"") + last_events(stream, trace)) + LAST_CHUNK)

    async def _relayed(self, stream: Stream, head: bytes) -> ProxyError | None:
        """Pass a stream on until its end mark; returns the error that came instead, if any."""
        write = self._write if self._transport is None else self._transport.write
        relay = self._relay = stream.relay(write, head)
        if self._write_paused:
            relay.pause()
        try:
            await relay.done
        except ProxyError as error:
            return error
        finally:
            self._relay = None
        return None

    def _served(self) -> None:
        """A request has got its answer. Its task calls this itself, because a callback would take another turn of the event loop."""
        task, self._task = cast("asyncio.Task[None]", self._task), None
        task.remove_done_callback(self._ended)
        self._front.tasks.discard(task)
        if self._transport is None:
            return
        if not self._keep_alive:
            self.close()
            return
        if self._front.stopping:  # the answer had begun before that, and did not say so
            self.stop()
        self._wait(self._front.config.keep_alive_timeout)
        if self._buffer:
            self._advance()
            self._pace()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A request was cancelled, maybe before its task had begun, or has failed unexpectedly."""
        self._task = None
        self._front.tasks.discard(task)
        transport = self._transport
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a request failed unexpectedly", exc_info=error)
        if transport is None:
            return
        if error is None or self._answering:
            transport.abort()
        else:
            self._refuse(HttpError(500, "internal server error"), None)
            self._keep_alive = False
            self.close()

    def _refuse(self, error: ProxyError, trace: Trace | None) -> None:
        headers = {"Content-Type": JSON, **error.headers}
        if trace is not None:
            trace.fail(error)
            headers |= response_headers(trace)
        body = error_of(self._asked.path if self._asked is not None else "", error)
        headers["Content-Length"] = str(len(body))
        self._write(self._response(error.status, headers) + body)

    def _response(self, status: int, headers: dict[str, str]) -> bytes:
        self._answering = True
        phrase = PHRASES.get(status, "")  # an engine may have statuses of its own
        headers["Date"] = self._front.date()
        self._keep_alive = self._keep_alive and not self._front.stopping
        if not self._keep_alive:
            headers["Connection"] = "close"
        if origins := self._front.context.settings.cors_origins:
            asked = self._asked
            headers |= cors.unread(origins) if asked is None else cors.headers(origins, asked.headers.get("origin", ""))
        return write_head(f"HTTP/1.1 {status} {phrase}", headers)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
