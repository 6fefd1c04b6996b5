"""Limits of a request's body, checked before it is parsed. Pure.

A body of a few megabytes may be one long text, or millions of lists of one number, which would take a hundred times the memory as
Python objects. A large body is read in pieces: a single call for all of it would keep other threads waiting for tens of milliseconds.
"""

import re
from collections.abc import Iterator
from typing import Final

from pd_proxy.errors import BadRequestError

# A smaller body cannot hold too many items.
SMALL_BYTES: Final = 64 * 1024
PIECE_BYTES: Final = 1024 * 1024

_STRING: Final = re.compile(rb'"[^"]*"')
# What still belongs to a piece that ends here: backslashes, and what they or one before them may escape.
_ESCAPED: Final = re.compile(rb"\\*[^\\]?")


def check_items(body: bytes, most: int) -> None:
    """Check the number of strings, lists and objects in a body, names included.

    Raises:
        BadRequestError: if there are more than `most`.
    """
    if len(body) > SMALL_BYTES and _roughly(body) > most and _items(body, (b"{", b"["), most) > most:
        raise BadRequestError(f"the request body holds more than {most} strings, lists and objects (MAX_BODY_ITEMS)")


def elements(array: bytes) -> int:
    """The number of strings or lists in an array of strings, or of lists of numbers."""
    return _items(array, (b"[",), len(array)) - 1


def occurrences(text: bytes, what: bytes) -> int:
    """As `text.count(what)`, in pieces; `what` cannot overlap itself."""
    if text.find(what[:1]) < 0:  # many times as fast as counting, and `in` would take four times as long
        return 0
    beyond = PIECE_BYTES + len(what) - 1
    return sum(text.count(what, at, at + beyond) for at in range(0, len(text), PIECE_BYTES))


def _roughly(text: bytes) -> int:
    """The number of items, or more: within strings, too, every quote and bracket counts."""
    return occurrences(text, b'"') // 2 + occurrences(text, b"{") + occurrences(text, b"[")


def _items(text: bytes, openers: tuple[bytes, ...], most: int) -> int:
    """The number of strings, and of `openers` outside them; counting may end above `most`."""
    quotes = found = 0
    for piece in _pieces(text):
        inside = quotes % 2 == 1
        quotes += piece.count(b'"')
        if quotes // 2 + found > most:
            break
        if any(opener in piece for opener in openers):
            found += sum(map(_outside(piece, inside=inside).count, openers))
    return quotes // 2 + found


def _outside(piece: bytes, *, inside: bool) -> bytes:
    """What of a piece is in no string; `inside`: it begins in one."""
    if inside:
        piece = piece.partition(b'"')[2]
    if b'"' not in piece:
        return piece
    return _STRING.sub(b"", piece).partition(b'"')[0]


def _pieces(text: bytes) -> Iterator[bytes]:
    """The text in pieces, without any escaped quotes. No piece ends between a backslash and what it escapes."""
    begin = 0
    while begin < len(text):
        found = _ESCAPED.match(text, begin + PIECE_BYTES)
        end = found.end() if found is not None else len(text)
        piece, begin = text[begin:end], end
        # One byte is found much sooner than two.
        yield piece.replace(b"\\\\", b"xx").replace(b'\\"', b"xx") if b"\\" in piece else piece
