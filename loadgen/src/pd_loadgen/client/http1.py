"""HTTP/1.1 as a client speaks it to a streaming server; protocol only, no I/O.

Written by hand because the load generator pays for it on every read: a whole chunk in one read, which is what engines send,
costs one match. Anything else (chunks split or joined anywhere, extensions, trailers, 1xx answers, Content-Length, until-close)
takes the general way. Source: RFC 9112.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pd_loadgen.client.address import Target

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 8 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n]*)?")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?\r\n")


class ProtocolError(ValueError):
    """The server sent something that is no HTTP/1.1 response."""


class TruncatedError(ValueError):
    """The connection ended before the response did."""


def request_bytes(target: Target, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A whole POST request with a JSON body, ready for the socket."""
    lines = [
        f"POST {target.base}{path} HTTP/1.1",
        f"Host: {target.authority}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        # a compressing server would hold tokens back until a block is full
        "Accept-Encoding: identity",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers; names in lower case, repeated ones joined with a comma."""

    status: int
    headers: Mapping[str, str]
    minor: int = 1


class _Body(Enum):
    HEAD = "head"
    CHUNK_SIZE = "chunk size"
    CHUNK_DATA = "chunk data"
    CHUNK_END = "chunk end"
    TRAILERS = "trailers"
    LENGTH = "length"
    UNTIL_CLOSE = "until close"
    COMPLETE = "complete"


@dataclass(slots=True)
class Response:
    """Reads one response from bytes split anywhere.

    Attributes:
        head: None until it has come.
        complete: true once the last byte of the body has come.
    """

    head: Head | None = None
    complete: bool = False
    _state: _Body = _Body.HEAD
    _rest: bytes = field(default=b"", repr=False)
    _left: int = 0

    @property
    def reusable(self) -> bool:
        """True if another request may follow on the connection."""
        if self.head is None or not self.complete or self._state is _Body.UNTIL_CLOSE or self._rest:
            return False
        return self.head.minor == 1 and "close" not in self.head.headers.get("connection", "").lower()

    def feed(self, data: bytes) -> bytes:
        """Take what was read, give what of it is body.

        Raises:
            ProtocolError: if it cannot be a response.
        """
        if self._state is _Body.CHUNK_SIZE and not self._rest:
            match = _CHUNK_LINE.match(data)
            if match and 0 < (size := int(match[1], 16)) == len(data) - match.end() - 2 and data.endswith(b"\r\n"):
                start = match.end()
                return data[start : start + size]
        return self._feed(data)

    def eof(self) -> None:
        """Take the end of the connection.

        Raises:
            TruncatedError: unless the response was complete, or of the kind that ends with the connection.
        """
        if self._state is _Body.UNTIL_CLOSE:
            self.complete = True
        elif not self.complete:
            what = "before an answer came" if self.head is None and not self._rest else "in the middle of the answer"
            msg = f"the server closed the connection {what}"
            raise TruncatedError(msg)

    def _feed(self, data: bytes) -> bytes:
        self._rest += data
        out: list[bytes] = []
        while self._step(out):
            pass
        return b"".join(out)

    def _step(self, out: list[bytes]) -> bool:
        """Take one part from the rest; False if it needs more bytes or nothing is left to do."""
        match self._state:
            case _Body.HEAD:
                return self._take_head()
            case _Body.CHUNK_SIZE:
                return self._take_size()
            case _Body.CHUNK_DATA | _Body.LENGTH:
                return self._take_data(out)
            case _Body.CHUNK_END:
                return self._take_chunk_end()
            case _Body.TRAILERS:
                return self._take_trailer()
            case _Body.UNTIL_CLOSE:
                out.append(self._rest)
                self._rest = b""
        return False

    def _take_head(self) -> bool:
        end = self._rest.find(b"\r\n\r\n")
        if end < 0:
            _limit(len(self._rest), MAX_HEAD_BYTES, "head")
            return False
        head = parse_head(self._rest[:end])
        self._rest = self._rest[end + 4 :]
        if head.status >= 200:  # an interim answer (100 Continue) is followed by the real one
            self.head = head
            self._choose_body(head)
        return True

    def _choose_body(self, head: Head) -> None:
        length = head.headers.get("content-length", "")
        if head.headers.get("transfer-encoding", "").lower().endswith("chunked"):
            self._state = _Body.CHUNK_SIZE
        elif length.isascii() and length.isdigit():
            self._state, self._left = _Body.LENGTH, int(length)
            self._finish_if_empty()
        elif length:
            msg = f"Content-Length is {length[:40]!r}"
            raise ProtocolError(msg)
        elif head.status in (204, 304):
            self._finish()
        else:
            self._state = _Body.UNTIL_CLOSE

    def _take_size(self) -> bool:
        match = _CHUNK_LINE.match(self._rest)
        if match is None:
            if b"\r\n" in self._rest[:MAX_LINE_BYTES]:
                msg = f"no chunk size: {self._rest[:40]!r}"
                raise ProtocolError(msg)
            _limit(len(self._rest), MAX_LINE_BYTES, "chunk size")
            return False
        self._left = int(match[1], 16)
        self._rest = self._rest[match.end() :]
        self._state = _Body.CHUNK_DATA if self._left else _Body.TRAILERS
        return True

    def _take_data(self, out: list[bytes]) -> bool:
        if not self._rest:
            return False
        out.append(self._rest[: self._left])
        self._rest = self._rest[self._left :]
        self._left -= len(out[-1])
        if self._left == 0 and self._state is _Body.CHUNK_DATA:
            self._state = _Body.CHUNK_END
        self._finish_if_empty()
        return not self.complete

    def _finish_if_empty(self) -> None:
        if self._state is _Body.LENGTH and self._left == 0:
            self._finish()

    def _take_chunk_end(self) -> bool:
        if len(self._rest) < 2:
            return False
        if not self._rest.startswith(b"\r\n"):
            msg = f"a chunk is longer than its size says: {self._rest[:40]!r}"
            raise ProtocolError(msg)
        self._rest = self._rest[2:]
        self._state = _Body.CHUNK_SIZE
        return True

    def _take_trailer(self) -> bool:
        line, found, rest = self._rest.partition(b"\r\n")
        if not found:
            _limit(len(line), MAX_LINE_BYTES, "trailer")
            return False
        self._rest = rest
        if not line:
            self._finish()
        return not self.complete

    def _finish(self) -> None:
        self._state, self.complete = _Body.COMPLETE, True


def parse_head(data: bytes) -> Head:
    """Read a status line and headers, without the empty line.

    Raises:
        ProtocolError: if it is none.
    """
    first, *lines = data.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        msg = f"no HTTP/1.1 status line: {first[:60]!r}"
        raise ProtocolError(msg)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip():
            msg = f"no header: {line[:60]!r}"
            raise ProtocolError(msg)
        key, value = name.lower(), value.strip()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Head(int(match[2]), headers, int(match[1]))


def _limit(size: int, most: int, what: str) -> None:
    if size > most:
        msg = f"the {what} is longer than {most} bytes"
        raise ProtocolError(msg)
