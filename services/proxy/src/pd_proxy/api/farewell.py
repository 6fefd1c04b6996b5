"""How a connection is closed while its client may still be sending: closed at once, the client would lose the answer (TCP resets it)."""

import asyncio
from collections.abc import Callable
from typing import Final

# A client that goes on sending has so long to read the answer.
LINGER_S: Final = 2.0


class Farewell(asyncio.Protocol):
    """Reads what still comes and drops it, until the client closes its end or the time is over."""

    def __init__(self, transport: asyncio.Transport, closed: Callable[[Exception | None], None]) -> None:
        """From now on, nothing more is written; `closed` is called once the connection has ended."""
        self._closed = closed
        if transport.can_write_eof():
            transport.write_eof()
        # What was written and not taken yet is still delivered after that.
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, transport.close)
        transport.set_protocol(self)
        transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._closed(exc)
