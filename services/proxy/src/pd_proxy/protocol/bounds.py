"""Limits of a request's body, checked before it is parsed. Pure.

A body of a few megabytes may be one long text, or millions of lists of one number, which would take a hundred times the memory as
Python objects. Every pass over all bytes is a single call into C, so that other threads can run in between.
"""

import re
from typing import Final

from pd_proxy.errors import BadRequestError

# A smaller body cannot hold too many items.
SMALL_BYTES: Final = 64 * 1024

_STRING: Final = re.compile(rb'"[^"]*"')


def check_items(body: bytes, most: int) -> None:
    """Check the number of strings, lists and objects in a body, names included.

    Raises:
        BadRequestError: if there are more than `most`.
    """
    if len(body) > SMALL_BYTES and _items(body, most) > most:
        raise BadRequestError(f"the request body holds more than {most} strings, lists and objects (MAX_BODY_ITEMS)")


def elements(array: bytes) -> int:
    """The number of strings or lists in an array of strings, or of lists of numbers."""
    strings, lists = _strings(array), array.count(b"[") - 1
    if strings and lists:
        lists = _without_strings(array).count(b"[") - 1
    return strings + lists


def _items(body: bytes, most: int) -> int:
    strings = _strings(body)
    rest = body.count(b"{") + body.count(b"[")
    if strings + rest > most >= strings:
        outside = _without_strings(body)
        rest = outside.count(b"{") + outside.count(b"[")
    return strings + rest


def _strings(text: bytes) -> int:
    text = _backslashes_gone(text)
    return (text.count(b'"') - text.count(b'\\"')) // 2


def _without_strings(text: bytes) -> bytes:
    return _STRING.sub(b"", _backslashes_gone(text).replace(b'\\"', b"xx"))


def _backslashes_gone(text: bytes) -> bytes:
    """The text with escaped backslashes replaced, so that a backslash before a quote escapes it. The length stays, which is faster."""
    return text.replace(rb"\\", b"xx") if rb"\\" in text else text
