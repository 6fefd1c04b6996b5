"""Gives a stream of events one kind of line end. Pure.

Lines may end with LF, CR LF or CR, mixed, and a byte order mark may come before the first one (WHATWG HTML, "Server-sent events").
"""

import codecs
from typing import Final

CR: Final = b"\r"


def with_lf(data: bytes) -> bytes:
    """Complete events with LF at each line's end. JSON escapes a CR within a text, so every CR ends a line."""
    return data.replace(b"\r\n", b"\n").replace(CR, b"\n")


class LineEnds:
    """Does the same with a stream that is split at any byte. `due`: the next part must be fed here even if it holds no CR."""

    __slots__ = ("_begins", "_mark", "due")

    def __init__(self) -> None:
        self.due = True
        self._begins = True
        self._mark = b""

    def feed(self, data: bytes) -> bytes:
        """A part of the stream with LF at each line's end."""
        if self._begins:
            data = self._mark + data
            if data != codecs.BOM_UTF8 and codecs.BOM_UTF8.startswith(data):  # may still become one
                self._mark = data
                return b""
            self._begins, data = False, data.removeprefix(codecs.BOM_UTF8)
        elif self.due:  # an LF belongs to the CR before it
            data = data.removeprefix(b"\n")
        self.due = data.endswith(CR)
        return with_lf(data) if data.find(CR) >= 0 else data
