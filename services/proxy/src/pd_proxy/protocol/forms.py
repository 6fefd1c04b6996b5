"""Forms with files (`multipart/form-data`), in which audio comes. Pure.

A form is read and written anew: with a boundary of the proxy's, and each part's head in one spelling. So the engine's parser finds in it what
was found here, however the client wrote it.
"""

import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote

from msgspec import Struct

from pd_proxy.errors import BadRequestError

KIND: Final = "multipart/form-data"
# As many as vLLM's server takes.
MAX_PARTS: Final = 1000
MAX_HEAD_BYTES: Final = 2 * 1024
_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_FOLDED: Final = re.compile(r"\r\n[ \t]+")
# A parameter of a header's value. Python's `email` reads them, too, but in quadratic time.
_PARAMETER: Final = re.compile(r';\s*([^\s;="]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
# A value with its character set and language before it (RFC 5987).
_EXTENDED: Final = re.compile(r"([\w-]+)'[^']*'(.*)", re.DOTALL)


class Part(Struct, frozen=True):
    """One field of a form; `filename` is None unless it is a file."""

    name: str
    content: bytes | memoryview
    filename: str | None = None
    content_type: str = ""


def read(content_type: str, body: bytes) -> list[Part]:
    """The parts of a form.

    Raises:
        BadRequestError: if it is not a form, is cut off, or has too many parts.
    """
    kind, given = _parameters(content_type)
    boundary = given.get("boundary")
    if kind != KIND or not boundary:
        raise BadRequestError(f"the request body must be JSON, or {KIND} with a boundary")
    try:
        edge = b"--" + boundary.encode("ascii")
    except UnicodeEncodeError:
        raise _broken() from None
    return [_part(body, *place) for place in _places(body, edge)]


def write(parts: Iterable[Part]) -> tuple[str, bytes]:
    """A form's content type, and its body."""
    boundary = uuid.uuid4().hex
    pieces: list[bytes | memoryview] = []
    for part in parts:
        pieces += [f"--{boundary}\r\n{_head(part)}\r\n".encode(), part.content, _LINE_END]
    pieces.append(f"--{boundary}--\r\n".encode())
    return f"{KIND}; boundary={boundary}", b"".join(pieces)


def _places(body: bytes, edge: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each part's head begins, its content begins, and it ends."""
    delimiter = _LINE_END + edge
    begin = 0 if body.startswith(edge) else body.find(delimiter) + len(_LINE_END)
    if begin < len(_LINE_END) and not body.startswith(edge):
        raise _broken()
    for _ in range(MAX_PARTS + 1):
        begin += len(edge)
        if body.startswith(b"--", begin):
            return
        while body[begin : begin + 1] in (b" ", b"\t"):
            begin += 1
        content = body.find(_HEAD_END, begin, begin + MAX_HEAD_BYTES) + len(_HEAD_END)
        # The delimiter's line end may be the one before the content: its first byte is the last of an empty head.
        end = body.find(delimiter, content - len(_LINE_END))
        if not body.startswith(_LINE_END, begin) or content < len(_HEAD_END) or end < 0:
            raise _broken()
        yield begin, content, max(content, end)
        begin = end + len(_LINE_END)
    raise BadRequestError(f"the form has more than {MAX_PARTS} parts")


def _part(body: bytes, head: int, content: int, end: int) -> Part:
    text = _FOLDED.sub(" ", body[head + len(_LINE_END) : content].decode(errors="replace"))
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in text.split("\r\n"))
    }
    given = _parameters(headers.get("content-disposition", ""))[1]
    if "name" not in given:
        raise BadRequestError("a part of the form has no name")
    return Part(
        # Parsers differ in what a backslash before a letter is, and no field of vLLM's has one in its name.
        name=given["name"].replace("\\", ""),
        content=memoryview(body)[content:end],
        filename=given.get("filename"),
        content_type=headers.get("content-type", ""),
    )


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    """A header's value before its parameters, in lower case, and the parameters.

    Raises:
        BadRequestError: for one in several parts or in an unknown character set, which few clients write and parsers read differently.
    """
    found = {}
    for match in _PARAMETER.finditer(value):
        name, quoted, plain = match[1].lower(), match[2], (match[3] or "").strip()
        text = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
        if "*" in name:
            extended = _EXTENDED.fullmatch(text)
            if (
                name.count("*") > 1
                or not name.endswith("*")
                or extended is None
                or extended[1].lower() not in ("utf-8", "iso-8859-1")
            ):
                raise BadRequestError(f"the parameter `{name[:50]}` of the form cannot be read")
            name, text = name[:-1], unquote(extended[2], extended[1])
        found[name] = text
    return value.partition(";")[0].strip().lower(), found


def _head(part: Part) -> str:
    file = "" if part.filename is None else f'; filename="{_quoted(part.filename)}"'
    kind = " ".join(part.content_type.split())
    return f'Content-Disposition: form-data; name="{_quoted(part.name)}"{file}\r\n' + (
        f"Content-Type: {kind}\r\n" if kind else ""
    )


def _quoted(text: str) -> str:
    """As browsers write names."""
    text = text.encode(errors="replace").decode()
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _broken() -> BadRequestError:
    return BadRequestError("the request body is not a whole form in its boundary")
