"""HTTP/1.1 for the hot path: reads heads of clients' requests, and writes heads and chunks. Pure.

Only requests that can be read in one way are read here; `request_head` leaves every other one to Hypercorn, byte for byte. So
two parsers never disagree about where a request ends. Engines' answers are read by `pd_contracts.http_answers`.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from pd_proxy.protocol.endpoints import Endpoint

CHUNK: Final = b"%x\r\n%b\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_TARGET: Final = re.compile(rb"POST (" + "|".join(map(re.escape, Endpoint)).encode() + rb")/? HTTP/1\.1\r\n")
_BARE_EMPTY_LINE: Final = re.compile(rb"\n\r?\n")
_HEADER: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e]*)")
# How many lines of heads are remembered; each is at most as long as a head.
_REMEMBERED: Final = 256
_LENGTH_DIGITS: Final = 12
_ENDPOINTS: Final = {endpoint.encode(): endpoint for endpoint in Endpoint}
_MORE_THAN_A_LENGTH: Final = frozenset({"transfer-encoding", "expect", "upgrade", "content-encoding"})
_LONGEST_EXPECTED: Final = 4095


class RequestHead(Struct, frozen=True):
    """A request's head. Header names are in lower case, `size` is the head's length in bytes, `length` the body's."""

    path: Endpoint
    headers: Mapping[str, str]
    length: int
    keep_alive: bool
    size: int


def may_become_head(data: bytes | bytearray, seen: int = 0) -> bool:
    """Whether bytes without CR LF CR LF can still become a head; the first `seen` bytes have been checked before."""
    return data[0] > 0x20 and _BARE_EMPTY_LINE.search(data, max(0, seen - 2)) is None


def request_head(data: bytes | bytearray, end: int) -> RequestHead | None:
    """The head that ends before `end`; None if it is not a plain request for tokens.

    Not plain are: another route, a repeated header or one with bytes that are not printable ASCII, a body without a length, a missing
    host, and everything that changes the connection's protocol.
    """
    target = _TARGET.match(data)
    if target is None:
        return None
    lines = data[target.end() : end - 4].decode("latin-1").split("\r\n")
    try:
        headers = dict(map(_header, lines))
    except ValueError:
        return None
    length = headers.get("content-length", "")
    connection = headers.get("connection", "keep-alive").lower()
    if (
        len(headers) != len(lines)
        or not length.isdigit()
        or len(length) > _LENGTH_DIGITS
        or "host" not in headers
        or not _MORE_THAN_A_LENGTH.isdisjoint(headers)
        or connection not in ("keep-alive", "close")
    ):
        return None
    return RequestHead(_ENDPOINTS[target[1]], headers, int(length), connection == "keep-alive", end)


@lru_cache(_REMEMBERED)
def _header(line: str) -> tuple[str, str]:
    """A header's name in lower case, and its value. Clients send the same lines with each request, and looking one up takes a tenth of the time.

    Raises:
        ValueError: if it is not plain.
    """
    found = _HEADER.fullmatch(line)
    if found is None:
        raise ValueError(line)
    return found[1].lower(), found[2].strip()


def write_head(first_line: str, headers: Mapping[str, str]) -> bytes:
    """A message's head.

    Raises:
        ValueError: for a header that holds a line break.
    """
    return f"{first_line}\r\n{header_lines(headers)}\r\n".encode("latin-1")


def header_lines(headers: Mapping[str, str]) -> str:
    """The lines of a head, each with its end.

    Raises:
        ValueError: for a header that holds a line break.
    """
    lines = list(map(": ".join, headers.items()))
    text = "".join(lines)
    if "\r" in text or "\n" in text or "\0" in text:
        msg = "a header holds a line break"
        raise ValueError(msg)
    return "\r\n".join([*lines, ""])


def write_chunk(data: bytes) -> bytes:
    """One chunk of a body whose length is not known yet; `data` is not empty."""
    return CHUNK % (len(data), data)


def beginnings(payloads: Iterable[bytes]) -> dict[int, tuple[bytes, ...]]:
    """How a whole chunk begins that holds one of these beginnings, by its length in bytes. Only chunks of an event's usual size are there."""
    held = tuple(payloads)
    return {
        len(CHUNK % (size, bytes(size))): tuple(
            dict.fromkeys(form % size + payload for form in (b"%x\r\n", b"%X\r\n") for payload in held)
        )
        for size in range(1, _LONGEST_EXPECTED + 1)
    }
