"""An engine's answer while its bytes arrive.

It is read with `read`, with `readany` or, where every microsecond per chunk matters, by a sink that gets the bytes in the
callback in which they arrive.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from pd_contracts.http_answers import AnswerReader
from pd_proxy.errors import ProxyError

READ_AHEAD_BYTES: Final = 256 * 1024


class BrokenOffError(ConnectionError):
    """The connection ended before the answer was complete, or the answer is not valid HTTP."""


class StaleError(BrokenOffError):
    """A connection that was kept from an earlier request ended at once, without a byte of an answer: the engine had just closed it."""


class TooLargeError(BrokenOffError):
    """The answer is larger than the limit."""


class NotConnectedError(ConnectionError):
    """The connection could not be made."""


class OwnFaultError(NotConnectedError):
    """This process could not open a connection; `error` is what the client gets."""

    def __init__(self, error: ProxyError) -> None:
        super().__init__(error.message)
        self.error = error


class ConnectTimedOutError(NotConnectedError):
    """The connection was not accepted in time."""


class Sink(Protocol):
    """Receives the body of an answer as it arrives; `ended` is called once, with False if the body was cut off."""

    def feed(self, data: bytes) -> None: ...

    def ended(self, *, whole: bool) -> None: ...

    def shortcut(self, reader: AnswerReader) -> Callable[[bytes], bool] | None:
        """A function that gets bytes before `reader` does, or None. It returns whether it took them, which it may do only between two chunks."""


class Source(Protocol):
    """The connection that an answer comes from."""

    loop: asyncio.AbstractEventLoop

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...

    def deliver_to(self, sink: "Sink") -> None:
        """Send the body to `sink` from now on."""


class Reply:
    """An answer whose head has arrived; `finished`: all of it has."""

    __slots__ = (
        "_ahead",
        "_connection",
        "_loop",
        "_parts",
        "_sink",
        "_size",
        "_waiter",
        "broken",
        "finished",
        "retry_after",
        "status",
    )

    def __init__(self, connection: Source, status: int, retry_after: str = "") -> None:
        self.status = status
        self.retry_after = retry_after
        self.finished = False
        self.broken = False
        self._connection: Source | None = connection
        self._loop = connection.loop
        self._parts: list[bytes] = []
        self._size = 0
        # How many bytes are held before the engine has to wait.
        self._ahead = READ_AHEAD_BYTES
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self, limit: int) -> bytes:
        """The whole body, of at most `limit` bytes.

        Raises:
            BrokenOffError: if it is cut off.
            TooLargeError: if it is larger; the caller must then close the answer.
        """
        self._ahead = limit
        while self._size <= limit:
            if self.finished:
                return self._take()
            if self.broken:
                raise BrokenOffError
            self.resume()
            await self._more()
        raise TooLargeError

    async def readany(self) -> bytes:
        """The next part of the body; empty at its end.

        Raises:
            BrokenOffError: if it is cut.
        """
        while not self._parts:
            if self.broken:
                raise BrokenOffError
            if self.finished:
                return b""
            self.resume()
            await self._more()
        data = self._take()
        self.resume()
        return data

    def connect(self, sink: Sink) -> None:
        """Give everything that has arrived, and that will arrive, to `sink`."""
        self._sink = sink
        if self._parts:
            sink.feed(self._take())
        if self._connection is not None:
            self._connection.deliver_to(sink)
        self.resume()
        if self.finished or self.broken:
            sink.ended(whole=self.finished)

    def shorten(self, sink: Sink) -> None:
        """Ask the connected sink for its shortcut again; it may have one now."""
        if self._connection is not None:
            self._connection.deliver_to(sink)

    def pause(self) -> None:
        """Stop reading from the connection, so that the engine has to wait."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Release the connection. Before the end of the answer this closes it, which aborts the request at the engine."""
        connection, self._connection = self._connection, None
        if connection is not None and not self.finished:
            connection.abort()
            self.end(whole=False)

    def feed(self, data: bytes) -> None:
        """The connection received a part of the body that must not go to a sink's shortcut."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._ahead:
            self.pause()
        self._wake()

    def end(self, *, whole: bool) -> None:
        """The connection received the end of the body, or was closed."""
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

    def _more(self) -> "asyncio.Future[None]":
        """Done when something has arrived, or nothing more will."""
        self._waiter = self._loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
