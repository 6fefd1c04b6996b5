"""Sends a response through Hypercorn to a client that may be slow, over HTTP/1.1 or HTTP/2."""

import asyncio
from typing import Any, Final

from hypercorn.typing import ASGISendCallable

from pd_proxy.errors import SlowClientError

PART_BYTES: Final = 64 * 1024


class Delivery:
    """Sends a response in parts, each of which the client has to read in time."""

    def __init__(self, send: ASGISendCallable, patience_s: float) -> None:
        """`send` returns once the client has read most of what it was sent before."""
        self._send = send
        self._patience_s = patience_s

    async def send(self, event: Any) -> None:
        """Send an event like an ASGI server's `send`.

        Raises:
            SlowClientError: if the client read nothing for too long.
        """
        body = event.get("body", b"")
        *parts, last = [body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)] or [b""]
        for part in parts:
            await self._in_time({**event, "body": part, "more_body": True})
        await self._in_time({**event, "body": last} if parts else event)

    async def _in_time(self, event: Any) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(event)
        except TimeoutError:
            raise SlowClientError(f"the client read nothing for {self._patience_s:g} s") from None
