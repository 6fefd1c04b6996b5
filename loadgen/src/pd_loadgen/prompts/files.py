"""Files that users bring, as text and JSON: what editors and spreadsheets usually change is accepted; anything else is an error with file and line."""

import codecs
import json
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from pd_contracts.libraries import plain
from pd_contracts.sentences import Clause, SentenceError

T = TypeVar("T")
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


# What a compressed file begins with.
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


class FileError(SentenceError, ValueError):
    """A file cannot be used; the message is `file:line: what is wrong`."""


def at_line(path: Path, number: int, reason: object) -> FileError:
    """What is wrong in a line of a file."""
    return FileError("{path}:{line}: {reason}", path=path, line=number, reason=reason)


def text_of(path: Path) -> str:
    """A file's text: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        FileError: if it cannot be read or is in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError("{path}: {reason}", path=path, reason=plain(error)) from error
    if kind := next((name for begin, name in _COMPRESSED.items() if data.startswith(begin)), ""):
        raise FileError("{path}: the file is compressed ({kind}): unpack it first", path=path, kind=kind)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(
            "{path}:{line}: is not UTF-8 (byte {byte}); save the file as UTF-8 (Chinese files are often GB18030)",
            path=path,
            line=line,
            byte=f"{data[error.start]:#04x}",
        ) from error


def lines_of(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers; only line ends count, not every character that Unicode calls one."""
    split = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(split, 1) if line.strip()]


def decoded(path: Path, number: int, text: str, type_: type[T]) -> T:
    """One JSON value, read leniently: numbers may be texts and fractions, and NaN stands where Python wrote it.

    Raises:
        FileError: naming file and line.
    """
    try:
        try:
            return msgspec.json.decode(text, type=type_, strict=False)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return msgspec.convert(json.loads(text), type_, strict=False)
    except (*UNREADABLE, ValueError) as error:
        raise at_line(path, number, _reason(error)) from error


def _reason(error: Exception) -> object:
    """Why a text is not the JSON that was expected."""
    if isinstance(error, json.JSONDecodeError):
        return Clause("is not JSON from column {column} on", column=error.colno)
    return plain(error)


def values_of(path: Path, text: str) -> list[tuple[int, Any]]:
    """The values of a JSON array, or of JSON lines, each with the line on which it begins.

    Raises:
        FileError: naming file and line.
    """
    if not text.lstrip().startswith("["):
        return [(number, decoded(path, number, line, object)) for number, line in lines_of(text)]
    try:
        raw = [bytes(one).decode() for one in msgspec.json.decode(text, type=list[msgspec.Raw])]
    except UNREADABLE:
        # NaN, or no JSON at all: slower, and the line of an entry is not known
        return [(1, value) for value in decoded(path, 1, text, list[object])]
    values, end = [], 0
    for one in raw:
        start = text.index(one, end)
        end = start + len(one)
        number = text.count("\n", 0, start) + 1
        values.append((number, decoded(path, number, one, object)))
    return values
