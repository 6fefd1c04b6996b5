"""An engine that answers byte by byte as a test says: a script of pieces and pauses on the bare socket, and then an end."""

import asyncio
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from aiohttp import web
from support.proxy import Call, FakeEngine, generate

from pd_contracts import sse

# What a scripted request's prompt begins with; all others (probes, debts) are answered as an engine would.
MARK = "scripted"


class Written(web.Response):
    """An answer that has been written by hand: aiohttp adds nothing to it."""

    @property
    def keep_alive(self) -> bool:
        """Whoever closes the connection does that by hand, too."""
        return True

    async def prepare(self, request: web.BaseRequest) -> None: ...

    async def write_eof(self, data: bytes = b"") -> None: ...


@dataclass(frozen=True)
class Script:
    """An answer as bytes on the wire.

    Attributes:
        pieces: what is written at once.
        pauses: seconds after a piece, by its number.
        ends: "kept" (the connection stays open, as HTTP/1.1 wants it), "closed" or "reset"; "silent": nothing more comes, forever.
        whole: whether it is a correct answer to its last byte.
    """

    pieces: tuple[bytes, ...]
    pauses: dict[int, float] = field(default_factory=dict)
    ends: str = "kept"
    whole: bool = True

    async def __call__(self, engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        """As `FakeEngine.answer`."""
        if MARK not in json.dumps(call.body):
            return await generate(engine, call, request)
        transport = request.transport
        if transport is None:
            raise asyncio.CancelledError
        for number, piece in enumerate(self.pieces):
            transport.write(piece)
            await asyncio.sleep(self.pauses.get(number, 0))
        if self.ends == "silent":
            await asyncio.Event().wait()
        if self.ends == "reset":
            transport.abort()
        if self.ends == "closed" or not self.whole:
            transport.close()
        return Written()


def framed(body: bytes, framing: str, sizes: list[int], *headers: str) -> bytes:
    """A 200 with this body; chunks have these sizes, the last one again and again."""
    head = "".join(line + "\r\n" for line in ("HTTP/1.1 200 OK", *headers))
    if framing == "length":
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    if framing == "endless":
        return f"{head}\r\n".encode() + body
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts_of(body, sizes)]
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(chunks) + b"0\r\n\r\n"


def parts_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut into pieces of these sizes, the last one again and again."""
    found, at = [], 0
    for size in [*sizes[:-1], *[sizes[-1]] * (len(data) // sizes[-1] + 1)]:
        if at >= len(data):
            break
        found.append(data[at : at + size])
        at += size
    return found


def cut(data: bytes, at: list[int]) -> tuple[bytes, ...]:
    """Cut at these places."""
    edges = sorted({0, *(min(place, len(data)) for place in at), len(data)})
    return tuple(data[start:end] for start, end in pairwise(edges))


def whole_body(size: int) -> bytes:
    """A completion of about so many bytes."""
    body: dict[str, Any] = {"id": "cmpl-1", "choices": [{"index": 0, "text": "x" * size}]}
    return json.dumps(body).encode()


def stream_body(size: int, events: int) -> bytes:
    """So many events of together about so many bytes."""
    text = "x" * (size // events)
    event = sse.encode_event(json.dumps({"id": "cmpl-1", "choices": [{"index": 0, "text": text}]}))
    return event * events + sse.encode_event(sse.DONE)
