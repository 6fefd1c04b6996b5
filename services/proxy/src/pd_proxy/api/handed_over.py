"""Connections that Hypercorn serves, within the same limits as those that `client` serves itself.

Hypercorn reads with h11, which bounds only what is incomplete: a large head would pass or not as the network cuts it. It refuses what is
not HTTP with a status alone. It closes a connection at once, also while the client is still sending. And it keeps some idle connections
forever.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import h11
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Event, Updated
from hypercorn.typing import AppWrapper

from pd_contracts.http_answers import MAX_HEAD_BYTES
from pd_proxy.api.farewell import Farewell
from pd_proxy.protocol import malformed

_WRITER: Final = "pd_proxy.writer"


# The headers and the body of an answer, by its status, the reason, and the request, if its head could be read.
Refusal = Callable[[int, str, h11.Request | None], tuple[list[tuple[bytes, bytes]], bytes]]


class BoundedConnection(h11.Connection):
    """Refuses heads and trailers above MAX_HEAD_BYTES, whether they are complete or not, and says why a request is refused.

    A chunk that would make the body too large is refused when its size is known: its client may send nothing of it, or all of it.
    """

    def __init__(self, refusal: Refusal, max_body_bytes: int) -> None:
        # Twice as much, because complete trailers are measured without their white space.
        super().__init__(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
        self._refusal = refusal
        self._max_body_bytes = max_body_bytes
        self._body_bytes = 0
        self._request: h11.Request | None = None
        self._reason = ""

    def next_event(self) -> Any:
        """As in the base class.

        Raises:
            RemoteProtocolError: also for a head, a trailer or a chunk that is too large.
        """
        if self.their_state is h11.IDLE:
            self._request = None
        try:
            event = self._next_event()
        except h11.RemoteProtocolError as error:
            self._reason = malformed.in_words(str(error))
            raise
        if isinstance(event, h11.Request):
            self._request = event
        return event

    def send(self, event: Any) -> Any:
        """As in the base class; but an error of the server itself, which is a status alone, gets headers and a body."""
        if not isinstance(event, h11.Response) or event.status_code < 400 or not _is_bare(event):
            return super().send(event)
        reason = self._reason or f"the request failed with status {event.status_code}"
        headers, body = self._refusal(event.status_code, reason, self._request)
        headers += [pair for pair in event.headers if pair[0] != b"content-length"]
        if self._request is not None and self._request.method == b"HEAD":
            body = b""
        length = (b"content-length", str(len(body)).encode())
        parts = [super().send(h11.Response(status_code=event.status_code, headers=[*headers, length]))]
        if body:
            parts.append(super().send(h11.Data(data=body)))
        return b"".join(part or b"" for part in parts)

    def _next_event(self) -> Any:
        if self.their_state is h11.IDLE and self._skip_empty_lines():
            return h11.NEED_DATA
        before = self._unread() if self.their_state is h11.IDLE else 0
        event = super().next_event()
        self._check_chunk(event)
        if isinstance(event, h11.Request):
            size = before - self._unread()
        elif isinstance(event, h11.EndOfMessage):
            size = sum(len(name) + len(value) + 4 for name, value in event.headers)
        else:
            size = before if event is h11.NEED_DATA else 0
        if size > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        return event

    def _check_chunk(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
        # h11 tells the size of a chunk to nobody, and of a chunk without its first byte not even that there is one.
        expected = getattr(self._reader, "_bytes_in_chunk", 0)
        if expected and self._body_bytes + expected > self._max_body_bytes:
            msg = f"the request body is larger than MAX_BODY_BYTES ({self._max_body_bytes} bytes)"
            raise h11.RemoteProtocolError(msg, error_status_hint=413)

    @property
    def busy(self) -> bool:
        """Whether the client may still be sending a request."""
        return self.their_state in (h11.SEND_BODY, h11.ERROR) or (
            self.their_state is not h11.CLOSED and self._unread() > 0
        )

    def _skip_empty_lines(self) -> bool:
        """As RFC 9112, 2.2 wants it: some clients send a line end behind a body. Returns whether one has arrived in half."""
        data, end = bytes(self._receive_buffer), 0
        while data.startswith(b"\r\n", end):
            end += len(b"\r\n")
        if end:
            self._receive_buffer.maybe_extract_at_most(end)
        return data[end:] == b"\r"

    def _unread(self) -> int:
        return len(self.trailing_data[0])


def _is_bare(response: h11.Response) -> bool:
    """Whether only the server can have written this: no body, and the connection ends. The application says what its errors are."""
    told = dict(response.headers)
    return told.get(b"content-length") == b"0" and told.get(b"connection") == b"close" and b"content-type" not in told


def connection_broken(scope: Any) -> bool:
    """Whether the connection of a request has ended, so that its client cannot have got the whole answer."""
    writer = scope.get("state", {}).get(_WRITER)
    return isinstance(writer, Writer) and writer.broken


def state_of(writer: "Writer") -> dict[str, Any]:
    """The state of a connection that each of its requests can read."""
    return {_WRITER: writer}


class Server(TCPServer):
    """Hypercorn's server of one connection, within the proxy's limits."""

    writer: "Writer"
    _client_left = False

    async def protocol_send(self, event: Event) -> None:
        """As in the base class; but no next request is awaited once the client has closed its end."""
        if not (self._client_left and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        # HTTP/2, which begins as HTTP/1.1, replaces the protocol later on.
        self.protocol.protocol.connection = self.writer.bounded = BoundedConnection(
            self.writer.refusal, self.writer.max_body_bytes
        )
        await super()._read_data()
        self._client_left = True
        # The base class would keep the connection for KEEP_ALIVE_S.
        await self.idle_task.stop()


class Writer(asyncio.StreamWriter):
    """Lets a client that is still sending read its answer before the connection is closed."""

    bounded: BoundedConnection | None = None
    broken = False
    _closing = False

    def __init__(self, protocol: "HandedOver", transport: asyncio.Transport, reader: asyncio.StreamReader) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self._handed_over = protocol
        self._incoming = reader
        self.refusal = protocol.refusal
        self.max_body_bytes = protocol.max_body_bytes

    async def drain(self) -> None:
        """Wait until the client has read what it was sent. Hypercorn does not report a client that never does."""
        try:
            await super().drain()
        except ConnectionError:
            self.broken = True
            raise

    def __del__(self, *_: object) -> None:
        """Do nothing: the base class would warn about a connection whose client is still reading its answer."""

    def close(self) -> None:
        """Close the connection, now or as soon as the client has read what it was sent."""
        transport = self._handed_over.transport
        if self._closing or transport.is_closing():
            return
        self._closing = True
        if self.bounded is not None and self.bounded.busy and not self._incoming.at_eof():
            Farewell(transport, self._handed_over.connection_lost)
        else:
            transport.close()


class HandedOver(asyncio.StreamReaderProtocol):
    """The asyncio protocol of a connection that Hypercorn serves."""

    def __init__(
        self,
        transport: asyncio.Transport,
        serve: Callable[["HandedOver", asyncio.StreamReader, Writer], Coroutine[Any, Any, None]],
        ended: Callable[["HandedOver"], None],
        refusal: Refusal,
        max_body_bytes: int,
    ) -> None:
        """`serve` begins at once; `ended` is called when the connection has ended. `refusal` tells clients why the server refuses them."""
        self.transport = transport
        self.refusal = refusal
        self.max_body_bytes = max_body_bytes
        self._ended = ended
        self._requests = 0
        self._idle_since = asyncio.get_running_loop().time()
        self._serve = serve
        self._incoming = asyncio.StreamReader()
        # For a callback asyncio would make a writer of its own, which since Python 3.13 nobody keeps and which closes the connection at its end.
        super().__init__(self._incoming)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        super().connection_made(transport)
        writer = Writer(self, self.transport, self._incoming)
        self._serving = asyncio.get_running_loop().create_task(self._serve(self, self._incoming, writer))

    def counting(self, app: AppWrapper) -> AppWrapper:
        """An application for this connection alone, whose requests are counted."""

        async def counted(*call: Any) -> None:
            self._requests += 1
            try:
                await app(*call)
            finally:
                self._requests -= 1
                self._idle_since = asyncio.get_running_loop().time()

        return cast("AppWrapper", counted)

    def idle_s(self, now: float) -> float:
        """For how long no request has been served; a request begins with a whole head.

        Hypercorn measures this only after a request: not while HTTP/2 has begun without one, nor after a WebSocket's handshake that is wrong.
        """
        return 0.0 if self._requests else now - self._idle_since

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ended(self)
