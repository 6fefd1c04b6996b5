"""What libraries and the system say of files, as sentences for readers who know neither, which can be translated."""

import re
from typing import Final

from pd_contracts.sentences import Clause, mark

_PLACE: Final = r"(?: - at `(?P<place>[^`]+)`)?"
_TYPE: Final = r"Expected `(?P<wanted>[^`]+)`"
# What is said, and the message for it; groups fill its holes. A place in the document goes before the message.
_SAID: Final = (
    (rf"{_TYPE}(?:[^,`]*), got `(?P<got>[^`]+)`{_PLACE}", mark("expected {wanted}, got {got}")),
    (rf"{_TYPE} >= (?P<bound>\S+){_PLACE}", mark("expected {wanted} of at least {bound}")),
    (rf"{_TYPE} <= (?P<bound>\S+){_PLACE}", mark("expected {wanted} of at most {bound}")),
    (rf"{_TYPE} > (?P<bound>\S+){_PLACE}", mark("expected {wanted} above {bound}")),
    (rf"{_TYPE} < (?P<bound>\S+){_PLACE}", mark("expected {wanted} below {bound}")),
    (rf"{_TYPE} of length >= (?P<bound>\d+){_PLACE}", mark("expected {wanted} with at least {bound} entries")),
    (rf"{_TYPE} of length <= (?P<bound>\d+){_PLACE}", mark("expected {wanted} with at most {bound} entries")),
    (rf"{_TYPE} of length (?P<bound>\d+){_PLACE}", mark("expected {wanted} with {bound} entries")),
    (rf"Object missing required field `(?P<field>[^`]+)`{_PLACE}", mark("the field {field} is missing")),
    (rf"Object contains unknown field `(?P<field>[^`]+)`{_PLACE}", mark("the field {field} is unknown")),
    (rf"Invalid enum value (?P<value>'[^']*'|\S+){_PLACE}", mark("{value} is none of the values that it can have")),
    (rf"(?:Number|Integer value) out of range{_PLACE}", mark("the number is too large")),
    (rf"Invalid UTF-8 encoded string{_PLACE}", mark("the text is not UTF-8")),
    (r"JSON is malformed: .*\(byte (?P<byte>\d+)\)", mark("this is not JSON, from byte {byte} on")),
    (r"Input data was truncated", mark("this is not JSON: its end is missing")),
    (r".* \(at line (?P<line>\d+), column (?P<column>\d+)\)", mark("this is not TOML, from line {line}, column {column} on")),
    (r".* \(at end of document\)", mark("this is not TOML: its end is missing")),
    (r"(?s).*in \"<[^\"]*>\", line (?P<line>\d+), column (?P<column>\d+).*", mark("this is not YAML, from line {line}, column {column} on")),
    (r"'utf-8' codec can't decode byte (?P<byte>\w+) in position (?P<position>\d+).*", mark("this is not UTF-8, from byte {position} on ({byte})")),
    (r"maximum recursion depth exceeded.*", mark("it is nested too deeply")),
    (r"No such file or directory", mark("there is no such file or folder")),
    (r"Is a directory", mark("this is a folder")),
    (r"Not a directory", mark("this is no folder")),
    (r"Permission denied", mark("there is no permission to read it")),
    (r"field larger than field limit \(\d+\)", mark("a cell is too long")),
)  # fmt: skip
# Types of JSON, TOML and YAML.
_KINDS: Final = {
    "int": mark("a whole number"),
    "float": mark("a number"),
    "str": mark("a text"),
    "bool": mark("true or false"),
    "array": mark("a list"),
    "object": mark("an object"),
    "null": mark("null"),
}


def sentence_of(said: str) -> Clause | None:
    """The same as a sentence; None for what is not known."""
    for pattern, message in _SAID:
        if found := re.fullmatch(pattern, said):
            holes: dict[str, object] = {name: value for name, value in found.groupdict().items() if value is not None}
            place = str(holes.pop("place", "")).removeprefix("$").removeprefix(".")
            for name in ("wanted", "got"):
                if name in holes:
                    holes[name] = _kinds(str(holes[name]))
            clause = Clause(message, **holes)
            return Clause("{place}: {reason}", place=place, reason=clause) if place else clause
    return None


def plain(error: Exception) -> Clause | Exception:
    """An error that a library or the system raised, as a sentence; itself if it is none that is known.

    The reader's sentence names the file already, so of the system's error only the reason is kept.
    """
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    known = sentence_of(said)
    return known or (Clause(said) if isinstance(error, OSError) else error)


def _kinds(names: str) -> Clause | str:
    """A type, or the types of which a value may have any; what a field may also lack needs no mention."""
    kinds = [name for name in names.split(" | ") if name != "null"] or ["null"]
    if any(name not in _KINDS for name in kinds):
        return names
    if len(kinds) == 1:
        return Clause(_KINDS[kinds[0]])
    return Clause("{one} or {other}", one=_kinds(kinds[0]), other=_kinds(" | ".join(kinds[1:])))
