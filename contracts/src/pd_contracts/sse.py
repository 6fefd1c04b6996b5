"""Server-sent events as OpenAI-compatible servers send them; protocol only, no I/O.

Lines end with LF, CR LF or CR; an empty line ends an event; several `data:` lines are joined with LF; a line that starts
with a colon is a comment (WHATWG HTML, "Server-sent events"). Unlike a browser, the decoder reports comments, because
pdstack carries its timing in one (see `pd_contracts.timing`).
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

DONE = "[DONE]"
_MOST_DONE = 16
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """A dispatched event: its name ("message" unless given) and its data."""

    data: str
    name: str = "message"

    @property
    def done(self) -> bool:
        """True for OpenAI's end mark; some servers put blanks around it."""
        return len(self.data) < _MOST_DONE and self.data.strip() == DONE


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment line, without its colon and the one space after it."""

    text: str


class Decoder:
    """Turns bytes, split anywhere, into events and comments."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._after_cr = False
        self._data: list[str] = []
        self._name = ""

    @property
    def incomplete(self) -> bool:
        """True if the stream stands inside an event: ending here means that it was cut."""
        return bool(self._rest or self._data or self._name)

    @property
    def pending(self) -> str:
        """The data of the event that the stream stands inside; the end of a stream may have cut it, or only its empty line."""
        name, _, value = self._rest.decode("utf-8", "replace").partition(":")
        return "\n".join([*self._data, value.removeprefix(" ")] if name == "data" else self._data)

    def feed(self, data: bytes) -> Iterator[Event | Comment]:
        """Yield what `data` completes; must be exhausted before the next call."""
        if self._after_cr and data:  # this LF belongs to the line end before it
            data = data.removeprefix(b"\n")
            self._after_cr = False
        buffer = self._rest + data
        if not self._begun:
            if codecs.BOM_UTF8.startswith(buffer):  # all of it, or its beginning, which says nothing yet
                self._rest = buffer
                return
            self._begun, buffer = True, buffer.removeprefix(codecs.BOM_UTF8)
        self._after_cr = self._after_cr or buffer.endswith(b"\r")
        start = 0
        for match in _LINE_END.finditer(buffer):
            line = buffer[start : match.start()].decode("utf-8", "replace")
            start = match.end()
            item = self._line(line)
            if item is not None:
                yield item
        self._rest = buffer[start:]

    def _line(self, line: str) -> Event | Comment | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            return Comment(value)
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        if not self._data:
            self._name = ""
            return None
        event = Event("\n".join(self._data), self._name or "message")
        self._data, self._name = [], ""
        return event


def encode_event(data: str | bytes, name: str | None = None) -> bytes:
    """Write one event whose data has no line ends (JSON without indentation, `[DONE]`)."""
    payload = data.encode() if isinstance(data, str) else data
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + payload + b"\n\n"


def encode_comment(text: str) -> bytes:
    """Write one comment, as an event block of its own so that proxies pass it on at once."""
    return b": " + text.encode() + b"\n\n"
