"""An engine's answer as its bytes come.

It is read by `read`, by `readany`, or, where every microsecond a chunk counts, by a sink that gets the bytes in the very
callback in which they arrive.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from pd_contracts.http_answers import AnswerReader
from pd_proxy.errors import ProxyError

READ_AHEAD_BYTES: Final = 256 * 1024


class BrokenOffError(ConnectionError):
    """The connection ended before the answer did, or what came is no answer."""


class TooLargeError(BrokenOffError):
    """More came than may be held."""


class NotConnectedError(ConnectionError):
    """There never was a connection."""


class OwnFaultError(NotConnectedError):
    """This side could not open a connection; `error` is what the client gets."""

    def __init__(self, error: ProxyError) -> None:
        super().__init__(error.message)
        self.error = error


class ConnectTimedOutError(NotConnectedError):
    """Nobody took the connection in time."""


class Sink(Protocol):
    """Takes the body of an answer as it comes; `ended` is called once, with False if the body was cut."""

    def feed(self, data: bytes) -> None: ...

    def ended(self, *, whole: bool) -> None: ...

    def shortcut(self, reader: AnswerReader) -> Callable[[bytes], bool] | None:
        """What may see bytes before `reader` does; it says whether it took them, which it may only between two chunks."""


class Source(Protocol):
    """The connection that an answer comes from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...

    def deliver_to(self, sink: "Sink") -> None:
        """Whom the body goes to from now on."""


class Reply:
    """An answer of which the head is here; `finished` says that all of it has come."""

    __slots__ = (
        "_ahead",
        "_connection",
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
        self._parts: list[bytes] = []
        self._size = 0
        # So much may be held before the engine has to wait.
        self._ahead = READ_AHEAD_BYTES
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self, limit: int) -> bytes:
        """The whole body, of at most so many bytes.

        Raises:
            BrokenOffError: if it is cut.
            TooLargeError: if there is more of it; whoever gets this error closes the answer.
        """
        self._ahead = limit
        while self._size <= limit:
            if self.finished:
                return self._take()
            if self.broken:
                raise BrokenOffError
            self.resume()
            await self._wait()
        raise TooLargeError

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
        if self._connection is not None:
            self._connection.deliver_to(sink)
        self.resume()
        if self.finished or self.broken:
            sink.ended(whole=self.finished)

    def shorten(self, sink: Sink) -> None:
        """The sink that is connected may have a shortcut by now."""
        if self._connection is not None:
            self._connection.deliver_to(sink)

    def pause(self) -> None:
        """Let the engine wait: what it sends is not being read."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Let go; before the end of the answer this closes the connection, which aborts the request at the engine."""
        connection, self._connection = self._connection, None
        if connection is not None and not self.finished:
            connection.abort()
            self.end(whole=False)

    def feed(self, data: bytes) -> None:
        """The connection got some of the body, which must not go elsewhere."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._ahead:
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
