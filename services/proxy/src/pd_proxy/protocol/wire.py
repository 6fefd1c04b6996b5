"""HTTP/1.1 as the hot path needs it: heads and bodies of messages, read from bytes and written to bytes. Pure.

Of clients' requests only those with one plain meaning are read here; `request_head` leaves every other to Hypercorn, byte for
byte, so two parsers never disagree about where a request ends. Engines' answers are read as strictly as their framing needs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_ANSWER_HEAD_BYTES: Final = 64 * 1024
CHUNK: Final = b"%x\r\n%b\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_TARGET: Final = re.compile(rb"POST (/v1/(?:(?:chat/)?completions|responses)) HTTP/1\.1\r\n")
_BEGINNINGS: Final = (b"POST /v1/c", b"POST /v1/r")
_HEADERS: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e]*\r\n)*\r\n")
_LENGTH: Final = re.compile(r"[0-9]{1,12}")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]*)?\r\n")
_MAX_CHUNK_LINE: Final = 4096
# Sizes of the chunks that events make, as engines write them: looking one up also proves that it is well written.
CHUNK_SIZES: Final = {form % size: size for size in range(1, 4096) for form in (b"%x", b"%X")}


class FramingError(ValueError):
    """An engine's bytes are not an HTTP/1.1 answer."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head; names of headers are in lower case, `size` is its length in bytes, `length` that of the body."""

    path: str
    headers: Mapping[str, str]
    length: int
    keep_alive: bool
    size: int

    def header(self, name: str) -> str:
        """A header by its name in lower case; empty if there is none."""
        return self.headers.get(name, "")


def may_become_ours(data: bytes | bytearray) -> bool:
    """Whether bytes without the end of a head may still become one that `request_head` reads."""
    return len(data) < MAX_HEAD_BYTES and any(data.startswith(b) or b.startswith(data) for b in _BEGINNINGS)


def request_head(data: bytes | bytearray, end: int) -> RequestHead | None:
    """The head that ends before `end`; None if its meaning needs more than a glance.

    That is: another route, a header twice or with bytes that are not printable ASCII, a body without a length, no host, and
    everything that changes what the connection speaks.
    """
    target = _TARGET.match(data)
    if target is None or _HEADERS.fullmatch(data, target.end(), end) is None:
        return None
    lines = data[target.end() : end - 4].decode("ascii").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    length = headers.get("content-length", "")
    connection = headers.get("connection", "keep-alive").lower()
    if (
        len(headers) != len(lines)
        or _LENGTH.fullmatch(length) is None
        or "host" not in headers
        or not headers.keys().isdisjoint(("transfer-encoding", "expect", "upgrade", "content-encoding"))
        or connection not in ("keep-alive", "close")
    ):
        return None
    return RequestHead(target[1].decode("ascii"), headers, int(length), connection == "keep-alive", end)


def write_head(first_line: str, headers: Mapping[str, str]) -> bytes:
    """A message's head.

    Raises:
        ValueError: for a header that would end its line.
    """
    lines = [first_line, *[f"{name}: {value}" for name, value in headers.items()]]
    text = "\r\n".join(lines)
    if text.count("\r") != len(lines) - 1 or text.count("\n") != len(lines) - 1 or "\0" in text:
        msg = "a header holds a line end"
        raise ValueError(msg)
    return (text + "\r\n\r\n").encode("latin-1")


def write_chunk(data: bytes) -> bytes:
    """One chunk of a body whose length nobody knows yet; `data` is not empty."""
    return CHUNK % (len(data), data)


class Body(Protocol):
    """The body of an answer: `feed` takes what came and gives what of it is body."""

    done: bool
    reusable: bool

    def feed(self, data: bytes) -> bytes:
        """Decode; raises FramingError."""


class SizedBody:
    """A body of known length."""

    __slots__ = ("_left", "done", "reusable")

    def __init__(self, length: int) -> None:
        """`length` in bytes."""
        self._left = length
        self.done = not length
        self.reusable = True

    def feed(self, data: bytes) -> bytes:
        """All of it is body; what follows the end was not asked for, and makes the connection useless."""
        self._left -= len(data)
        self.done = self._left <= 0
        if self._left < 0:
            self.reusable = False
            return data[: self._left]
        return data


class EndlessBody:
    """A body that ends with the connection."""

    __slots__ = ("done", "reusable")

    def __init__(self) -> None:
        """It is never done by itself."""
        self.done = False
        self.reusable = False

    def feed(self, data: bytes) -> bytes:
        """All of it is body."""
        return data


class ChunkedBody:
    """A body in chunks, cut anywhere."""

    __slots__ = ("_left", "_rest", "_trailer", "done", "reusable", "whole")

    def __init__(self) -> None:
        """Before the first chunk."""
        self.done = False
        self.whole = True  # nothing of a chunk has come that is not over
        self.reusable = True
        self._left = 0  # bytes of this chunk that are still to come, its line end included
        self._rest = b""
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        """What of `data` is body."""
        if self.whole:
            # An event is written as one chunk, and usually read as one.
            start = data.find(b"\r\n", 0, 8) + 2
            if len(data) - start - 2 == CHUNK_SIZES.get(data[: start - 2]) and data.endswith(b"\r\n"):
                return data[start:-2]
        return self._any(self._rest + data)

    def _any(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                at = self._inside(data, at, parts)
            elif self._trailer:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                self.done, at = end == at, end + 2
            else:
                size = _CHUNK_SIZE.match(data, at)
                if size is None:
                    break
                length = int(size[1], 16)
                at, self._left, self._trailer = size.end(), length + 2 if length else 0, not length
        self._rest = data[at:]
        self._check()
        self.whole = not self._left and not self._rest and not self._trailer
        return b"".join(parts)

    def _inside(self, data: bytes, at: int, parts: list[bytes]) -> int:
        end = min(at + self._left, len(data))
        body = min(at + max(0, self._left - 2), len(data))
        parts.append(data[at:body])
        expected = b"\r\n"[2 - self._left :] if self._left < 2 else b"\r\n"
        if not expected.startswith(data[body:end]):
            raise FramingError("a chunk is longer than it says")
        self._left -= end - at
        return end

    def _check(self) -> None:
        if self.done:
            self.reusable = not self._rest
            self._rest = b""
        elif self._rest and (b"\n" in self._rest or len(self._rest) > _MAX_CHUNK_LINE):
            raise FramingError("a chunk has no size")


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """An answer's status, how to read its body, and where in the bytes that begins."""

    status: int
    body: Body
    keep_alive: bool
    size: int


def answer_head(data: bytes) -> AnswerHead | None:
    """The head of an engine's answer to a POST, without what is informational before it; None if it is incomplete.

    Raises:
        FramingError: if it is none.
    """
    start = 0
    while True:
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            if len(data) - start > MAX_ANSWER_HEAD_BYTES:
                raise FramingError("the answer's head is too long")
            return None
        line = _STATUS_LINE.match(data, start)
        if line is None:
            raise FramingError("the answer has no status")
        status = int(line[2])
        if status >= 200:
            return _answer_head(status, line[1] == b"1", data[line.end() : max(line.end(), end)], end + 4)
        start = end + 4


def _answer_head(status: int, persistent: bool, lines: bytes, size: int) -> AnswerHead:
    headers: dict[bytes, bytes] = {}
    for line in lines.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        value = value.strip()
        if headers.get(name, value) != value and name in (b"content-length", b"transfer-encoding"):
            raise FramingError("the answer has two lengths")
        headers[name] = value
    connection = headers.get(b"connection", b"keep-alive" if persistent else b"close")
    return AnswerHead(status, _body(status, headers), b"close" not in connection, size)


def _body(status: int, headers: Mapping[bytes, bytes]) -> Body:
    if status in (204, 304):
        return SizedBody(0)
    if b"transfer-encoding" in headers:
        if headers[b"transfer-encoding"] != b"chunked":
            raise FramingError("the answer's transfer encoding is unknown")
        return ChunkedBody()
    length = headers.get(b"content-length")
    if length is None:
        return EndlessBody()
    if _LENGTH.fullmatch(length.decode("latin-1")) is None:
        raise FramingError("the answer's length is no number")
    return SizedBody(int(length))
