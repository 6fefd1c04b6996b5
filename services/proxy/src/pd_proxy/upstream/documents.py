"""What engines are asked beside tokens: documents of known size, and answers of any kind that are passed on as they come."""

from collections.abc import AsyncIterator

import aiohttp

from pd_proxy.errors import DisconnectedError
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.failures import translating


class Forwarded:
    """An engine's answer that is passed on as it comes."""

    def __init__(self, response: aiohttp.ClientResponse, name: str, shortage: Shortage) -> None:
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "application/octet-stream")
        self._response = response
        self._name = name
        self._shortage = shortage

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body.

        Raises:
            UpstreamError: if it breaks off.
        """
        with translating(self._name, "", lambda _: DisconnectedError.by(self._name), self._shortage):
            async for piece in self._response.content.iter_any():
                yield piece

    async def close(self) -> None:
        """Let go of the engine; before the end of the answer this aborts the request there."""
        self._response.close()


async def read_document(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Read a body that may come from anybody who pinged; None if it is larger than `limit` bytes."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > limit:
            return None
    return bytes(body)
