"""Answers to requests that are not for tokens: documents of limited size, and streams, in which only an engine's errors are changed."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec

from pd_proxy.errors import BrokenReplyError, DisconnectedError
from pd_proxy.protocol.rewrite import BLOCK_END, ForwardedRewriter
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.failures import translating

# Reads any JSON to its end without building it.
_json = msgspec.json.Decoder(msgspec.Raw)


class _Use:
    """One request's use of a connection; `kept`: an earlier request had used it."""

    kept = False


async def _noted(_session: aiohttp.ClientSession, context: SimpleNamespace, _: object) -> None:
    if isinstance(context.trace_request_ctx, _Use):
        context.trace_request_ctx.kept = True


def noting_use() -> aiohttp.TraceConfig:
    """What a session needs for `post`."""
    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(_noted)
    return config


async def post(session: aiohttp.ClientSession, url: str, **options: Any) -> aiohttp.ClientResponse:
    """POST what may be sent twice: again and again while it meets kept connections that the engine has closed. aiohttp does that for GET only.

    Raises:
        aiohttp.ClientError: if it fails over a new connection.
    """
    while True:
        use = _Use()
        try:
            return await session.post(url, trace_request_ctx=use, allow_redirects=False, **options)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not use.kept:
                raise


def check_json(answer: bytes, name: str) -> None:
    """Check a 200 that must be JSON; `name` is the engine's.

    Raises:
        BrokenReplyError: if it is not.
    """
    try:
        if not answer.isascii():
            answer.decode()  # the decoder does not look into what it leaves raw
        _json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        what = "is empty" if not answer.strip() else "is not valid JSON"
        raise BrokenReplyError(f"{name}'s answer {what}") from None


def is_json(response: aiohttp.ClientResponse) -> bool:
    return response.content_type == "application/json"


def is_stream(response: aiohttp.ClientResponse) -> bool:
    return response.content_type == "text/event-stream"


class PassedOn:
    """An engine's 200. `first` is all of it, unless it is a stream."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        first: bytes,
        name: str,
        shortage: Shortage,
        rewriter: ForwardedRewriter,
    ) -> None:
        """`rewriter` has been fed with the bytes before `first`."""
        self.content_type = response.headers.get("Content-Type", "application/octet-stream")
        self.first = first
        self.is_stream = is_stream(response)
        self._response = response
        self._name = name
        self._shortage = shortage
        self._rewriter = rewriter

    async def pieces(self) -> AsyncIterator[bytes]:
        """What follows `first`.

        Raises:
            UpstreamError: if the connection breaks.
        """
        with translating(self._name, "", lambda _: DisconnectedError.by(self._name), self._shortage):
            async for piece in self._response.content.iter_any():
                if block := self._rewriter.feed(piece):
                    yield block
        if self._rewriter.incomplete:  # the empty line behind the last event may be missing
            yield self._rewriter.feed(BLOCK_END)

    def close(self) -> None:
        """Release the engine; before the end of the answer this aborts the request there."""
        self._response.close()


async def read_document(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Read a body; None if it is larger than `limit` bytes, because everything that pings is asked."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > limit:
            return None
    return bytes(body)
