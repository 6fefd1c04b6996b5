"""From an engine to a client without a stop: what is done with the bytes of a stream in the callback in which they come."""

import asyncio
from collections.abc import Callable

from pd_proxy import rewrite
from pd_proxy.connections import Reply
from pd_proxy.errors import DisconnectedError, ProxyError
from pd_proxy.flights import Flight


class Rest:
    """What comes after the end mark, which nobody wants to know."""

    def __init__(self, close: Callable[[], None], timer: asyncio.TimerHandle) -> None:
        """`close` is called when it is over, unless `timer` did that before."""
        self._close = close
        self._timer = timer

    def feed(self, data: bytes) -> None:
        """Drop it."""

    def ended(self, *, whole: bool) -> None:  # noqa: ARG002  the answer was complete before
        """The connection is free."""
        self._timer.cancel()
        self._close()


class Relay:
    """Passes a stream on as it comes: no task wakes up a chunk. `done` is what to wait for; it raises UpstreamError."""

    def __init__(
        self, flight: Flight, reply: Reply, rewriter: rewrite.StreamRewriter, write: Callable[[bytes], None]
    ) -> None:
        """Use `Stream.relay`."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flight = flight
        self._reply = reply
        self._rewriter = rewriter
        self._write = write
        self._held_up = False

    def begin(self, block: bytes) -> None:
        """Pass on the first events, then whatever comes."""
        if block:
            self._write(block)
        if self._rewriter.done:
            self.done.set_result(None)
            return
        if not self._held_up:
            self._flight.waits()
        self._reply.connect(self)

    def feed(self, data: bytes) -> None:
        """Some of the stream."""
        if self.done.done():
            return
        self._flight.progressed()
        try:
            block = self._rewriter.feed(data)
        except ProxyError as error:
            self.done.set_exception(error)
            return
        if block:
            self._write(block)
        if self._rewriter.done:
            self.done.set_result(None)
        elif self._held_up:
            self._flight.held_up()

    def ended(self, *, whole: bool) -> None:  # noqa: ARG002  without the end mark it is cut in any case
        """The answer is over."""
        if not self.done.done():
            self.done.set_exception(self._flight.failure or cut(self._flight))

    def pause(self) -> None:
        """The client does not take what it was sent; then neither do we."""
        self._held_up = True
        self._flight.held_up()
        self._reply.pause()

    def resume(self) -> None:
        """It takes more."""
        self._held_up = False
        if not self.done.done():
            self._flight.waits()
        self._reply.resume()


def cut(flight: Flight) -> DisconnectedError:
    """The error for an answer that ends too early."""
    return DisconnectedError(f"{flight.instance.name} closed the connection before its answer was complete")
