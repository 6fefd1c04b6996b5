"""An engine's answer: either whole, or a stream whose first events have arrived. Clients get no 200 before that."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import AnswerTooLargeError, BrokenReplyError, ProxyError, StaleConnectionError, UpstreamError
from pd_proxy.kv.transfer import Leg
from pd_proxy.protocol import rewrite
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.rewrite import has_event
from pd_proxy.protocol.typed import MessageRewriter, TypedRewriter
from pd_proxy.upstream.failures import translated
from pd_proxy.upstream.flights import Flight
from pd_proxy.upstream.http import Upstream
from pd_proxy.upstream.relay import END, Relay, Rest, ending
from pd_proxy.upstream.replies import BrokenOffError, Reply

SETTLE_S: Final = 1.0
# Rewriters for the endpoints whose events have types.
REWRITERS: Final = {Endpoint.RESPONSES: TypedRewriter, Endpoint.MESSAGES: MessageRewriter}


class Whole:
    """A non-streamed answer, rewritten."""

    def __init__(self, body: bytes) -> None:
        self.body = body


class Stream:
    """A stream of events; `close` may be called at any time, and repeatedly. `successor` finds an engine that continues if it fails."""

    def __init__(self, flight: Flight, reply: Reply, rewriter: rewrite.StreamRewriter, first: bytes) -> None:
        """`first` holds the events that have already arrived."""
        self._flight = flight
        self._reply = reply
        self._rewriter = rewriter
        self._first = first
        self.successor: Successor | None = None

    @property
    def end(self) -> bytes:
        """The bytes that end the stream for the client, once its end mark has arrived."""
        return self._rewriter.end

    def error_event(self, error: ProxyError) -> bytes:
        """The event that ends the stream for the client if it fails."""
        return self._rewriter.error_event(error)

    async def next(self) -> bytes:
        """The next whole events, without the end mark; empty once that has arrived.

        Raises:
            UpstreamError: if the stream ends without it, stalls, or holds something that is not an event.
        """
        # The hot path: no task, timer or context manager per chunk. Ending a flight closes the response instead.
        flight, reply, rewriter = self._flight, self._reply, self._rewriter
        block, self._first = self._first, b""
        if not block and flight.since is None:
            flight.waits()
        while not block and not rewriter.done:
            try:
                data = await reply.readany()
            except BrokenOffError:
                data = b""
            block = rewriter.feed(data) if data else ending(flight, rewriter)
        if rewriter.moves(block):
            flight.moved()
        flight.events += block.count(END)
        return block

    @property
    def events(self) -> int:
        """Number of events that were passed on."""
        return self._flight.events

    @property
    def failed(self) -> bool:
        """True if the engine reported an error in the stream."""
        return self._rewriter.failed

    def whole(self) -> bytes | None:
        """All events without the end mark, if that arrived together with the first ones; else None. Then there is nothing to relay."""
        if not self._rewriter.done:
            return None
        block, self._first = self._first, b""
        self._flight.events += block.count(END)
        return block

    def relay(self, write: Callable[[bytes], None], head: bytes) -> Relay:
        """Write everything as chunks in the callback in which it arrives, instead of `next`; what has arrived already is written with `head`."""
        block, self._first = self._first, b""
        relay = Relay(self._flight, self._reply, self._rewriter, write)
        relay.begin(head, block)
        return relay

    async def resume(self, error: ProxyError) -> "Stream | None":
        """The stream that continues this failed one; None if no engine can, and then the client gets an error event."""
        if self.successor is None or not isinstance(error, UpstreamError):
            return None
        self.close(failed=error.status >= 500)
        return await self.successor(error)

    def settle(self) -> None:
        """Release the engine. After its end mark it has a moment to end its answer, so that the connection can be used again."""
        if self._reply.finished:
            self.close()
            return
        timer = self._flight.loop.call_later(SETTLE_S, self.close)
        self._reply.connect(Rest(self.close, timer))

    def close(self, *, failed: bool = False) -> None:
        """Release the engine; before the end of the answer this aborts the request there."""
        self._flight.land(failed=failed)


class Written(Stream):
    """A stream that is complete before its first byte is sent to the client."""

    def __init__(self, events: bytes) -> None:
        self._events = events
        self._count = events.count(END)

    @property
    def events(self) -> int:
        return self._count

    @property
    def end(self) -> bytes:
        return rewrite.DONE_EVENT

    @property
    def failed(self) -> bool:
        return False

    async def next(self) -> bytes:
        block, self._events = self._events, b""
        return block

    def whole(self) -> bytes | None:
        block, self._events = self._events, b""
        return block

    def settle(self) -> None: ...

    def close(self, *, failed: bool = False) -> None: ...


# Finds an engine that continues a stream which failed with this error; None if no engine can.
Successor: TypeAlias = Callable[[ProxyError], Awaitable[Stream | None]]
Answer = Whole | Stream


async def fetch(upstream: Upstream, flight: Flight, path: str, leg: Leg) -> bytes:
    """Send a request and read the body of its 200.

    Raises:
        UpstreamError: for anything else.
    """
    try:
        reply = await upstream.post(flight, path, leg)
        body = await upstream.read(flight, reply)
        flight.moved()
    except BaseException as error:
        land(flight, error)
        raise
    flight.land()
    return body


async def accepted(upstream: Upstream, flight: Flight, path: str, leg: Leg) -> Reply:
    """Send a request and wait until the engine has accepted it, which may be before any of its answer arrives.

    Raises:
        UpstreamError: if the engine does not accept it.
    """
    try:
        return await upstream.post(flight, path, leg)
    except BaseException as error:
        land(flight, error)
        raise


def rewriter_of(instance: Instance, cleaning: rewrite.Cleaning) -> rewrite.StreamRewriter:
    """The rewriter that turns an engine's whole stream into one that a client may see."""
    kind = REWRITERS.get(cleaning.endpoint, rewrite.StreamRewriter)
    addresses = (instance.http_address, instance.zmq_address)
    return kind(cleaning.secret, addresses, endpoint=cleaning.endpoint, cached=cleaning.cached)


async def open_stream(
    upstream: Upstream, flight: Flight, path: str, leg: Leg, rewriter: rewrite.StreamRewriter
) -> Stream:
    """Send a request and wait for the first events of its answer.

    Raises:
        RefusedInStreamError: if the first event is an error.
        UpstreamError: if no event comes.
    """
    try:
        reply = await upstream.post(flight, path, leg)
        first = await _first_events(flight, reply, rewriter)
    except BaseException as error:
        land(flight, error)
        raise
    return Stream(flight, reply, rewriter, first)


def land(flight: Flight, error: BaseException) -> None:
    """End the flight of a request that failed or was cancelled. It counts as the engine's failure unless the request or the proxy caused it."""
    ours = isinstance(error, AnswerTooLargeError | StaleConnectionError)
    flight.land(failed=isinstance(error, UpstreamError) and error.status >= 500 and not ours)


async def _first_events(flight: Flight, reply: Reply, rewriter: rewrite.StreamRewriter) -> bytes:
    flight.waits()
    before = b""
    while True:
        try:
            data = await reply.readany()
        except BrokenOffError as error:
            raise translated(flight, error) from None
        first = rewriter.feed(data) if data else rewriter.finish()
        if not data and (flight.failure or not rewriter.done):
            raise flight.failure or BrokenReplyError(f"{flight.instance.name} answered 200 without a whole event")
        # Events that are held back, and comments, show only that the server lives, not that the engine makes progress.
        if rewriter.done or has_event(first):
            flight.moved()
            rewriter.check_first(first)
            return before + first
        if len(before) < rewrite.MAX_EVENT_BYTES and rewrite.lacks_choice(first):
            before += first
