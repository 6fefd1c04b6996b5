"""Closes a connection whose client may still be sending. If it were closed at once, TCP would reset it and the client would lose the answer."""

import asyncio
from collections.abc import Callable
from typing import Final

# How long a client that goes on sending has to read the answer.
LINGER_S: Final = 2.0


class Farewell(asyncio.Protocol):
    """Reads and drops what still arrives, until the client closes its end or the time is over."""

    def __init__(self, transport: asyncio.Transport, closed: Callable[[Exception | None], None]) -> None:
        """Begin; nothing more may be written. `closed` is called once the connection has ended."""
        self._closed = closed
        if transport.can_write_eof():
            transport.write_eof()
        # What has been written and not yet read is still delivered after that.
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, transport.close)
        transport.set_protocol(self)
        transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._closed(exc)
