"""Answers of an HTTP/1.1 server, read from bytes cut anywhere. No I/O.

llhttp reads (through httptools, as in uvicorn), in its strict mode. What is added here are bounds and what a client of a streaming server
needs to know: whether an answer is whole when its connection ends, and whether the connection is clean after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httptools

# Of a head, or of trailers, also of requests; the same however the network cuts them. Single sign-on makes cookies of tens of kilobytes.
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_INTERIM_ANSWERS: Final = 16
_SEPARATORS: Final = 4  # colon, space and line end of a header


class ProtocolError(ValueError):
    """The bytes are not an HTTP/1.1 answer, or a part of it is too large."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers; names in lower case, repeated ones joined with a comma."""

    status: int
    headers: Mapping[str, str]


class AnswerReader:
    """Reads the answers on one connection, one after the other.

    Attributes:
        status: of the answer that is being read; 0 before its head has come.
        complete: its last byte has come.
        whole_chunk: the body is chunked, and all chunks that have begun have ended: what comes next begins a chunk.
    """

    __slots__ = (
        "_closes",
        "_head",
        "_interim",
        "_lines",
        "_own",
        "_parser",
        "_parts",
        "_size",
        "_unread",
        "_until_close",
        "complete",
        "on_body",
        "status",
        "unclean",
        "whole_chunk",
    )

    status: int
    complete: bool
    whole_chunk: bool
    _closes: bool
    _until_close: bool
    _head: Head | None

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self.unclean = False
        self._begin()
        self._parser = httptools.HttpResponseParser(self)

    @property
    def head(self) -> Head:
        """Of the answer that is being read."""
        if self._head is None:
            headers: dict[str, str] = {}
            for name, value in self._lines:
                key, text = name.decode("latin-1"), value.decode("latin-1").strip()
                headers[key] = f"{headers[key]}, {text}" if key in headers else text
            self._head = Head(self.status, headers)
        return self._head

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the connection."""
        return self.complete and not self._closes and not self.unclean

    @property
    def begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self.status > 0 or self._unread > 0

    def feed(self, data: bytes) -> bytes:
        """Take what was read, and give what of it is body.

        Raises:
            ProtocolError: if it cannot be an answer.
        """
        parts, self._own = self._parts, 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ProtocolError("the server wants to speak another protocol") from None
        except httptools.HttpParserError as error:
            if not self.complete:
                raise ProtocolError(str(error.__context__ or error)) from None
            self.unclean = True  # what follows a complete answer belongs to no request
        if self.unclean:
            del parts[self._own :]
        if not data.endswith(b"\r\n"):
            self.whole_chunk = False
        if not parts:
            self._bound(len(data))
            return b""
        self._unread = 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body

    def eof(self) -> bool:
        """The connection has ended; whether the answer is whole."""
        self.complete = self.complete or self._until_close
        return self.complete

    def next(self) -> None:
        """Another request was sent on the connection."""
        self._begin()

    def close(self) -> None:
        """Break the reference cycle between the parser and this object."""
        del self._parser

    def _begin(self) -> None:
        self.status = 0
        self.complete = self.whole_chunk = False
        self._closes = self._until_close = False
        self._head = None
        self._lines: list[tuple[bytes, bytes]] = []
        self._interim = self._size = self._unread = 0
        self._own = 0  # how many of the parts that were just read are the answer's, once it is complete

    def _bound(self, size: int) -> None:
        """Count bytes outside of a body, which must not go on forever."""
        if not self.complete:
            self._unread += size
            # Twice as much, because a head is measured without its white space once it is there.
            if self._unread > 2 * MAX_HEAD_BYTES:
                raise ProtocolError(f"the head or the framing of the body is larger than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        """Called by the parser, as what follows."""
        if self.complete:
            self.unclean = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value) + _SEPARATORS
        if self._size > MAX_HEAD_BYTES:
            raise ProtocolError(f"a head is larger than {MAX_HEAD_BYTES} bytes")
        if not self.status:
            self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is complete; a status below 200 only announces another answer."""
        status = self._parser.get_status_code()
        self._size = self._unread = 0
        if status < 200:
            self._interim += 1
            self._lines.clear()
            if self._interim > MAX_INTERIM_ANSWERS:
                raise ProtocolError("the server sends one interim answer (1xx) after another")
            return
        self.status = status
        self._closes = not self._parser.should_keep_alive()
        last = dict(self._lines)
        encoding = last.get(b"transfer-encoding")
        if encoding is not None and encoding.strip().lower() != b"chunked":
            raise ProtocolError("the answer's transfer encoding is unknown")
        self.whole_chunk = encoding is not None
        self._until_close = encoding is None and b"content-length" not in last and status not in (204, 304)

    def on_chunk_header(self) -> None:
        self.whole_chunk = False

    def on_chunk_complete(self) -> None:
        self.whole_chunk = True

    def on_message_complete(self) -> None:
        """An answer is complete; nothing to do for one that only announced another."""
        if self.status and not self.complete:
            self.complete = True
            self._own = len(self._parts)
