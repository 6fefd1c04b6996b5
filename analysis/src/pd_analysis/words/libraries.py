"""What libraries and the system say of files, as sentences that can be translated."""

import re
from typing import Final

from pd_contracts.sentences import Clause, mark

# What is said, and the message for it; groups fill its holes.
_SAID: Final = (
    (r"Expected `(?P<wanted>[^`]+)`(?P<bound>[^,`]*), got `(?P<got>[^`]+)`(?: - at `(?P<place>[^`]+)`)?", mark("{place}: expected {wanted}, got {got}")),
    (r"Expected `(?P<wanted>[^`]+)` (?P<bound>[<>=]+ \S+)(?: - at `(?P<place>[^`]+)`)?", mark("{place}: expected {wanted} {bound}")),
    (r"Object missing required field `(?P<field>[^`]+)`(?: - at `(?P<place>[^`]+)`)?", mark("{place}: the field {field} is missing")),
    (r"Object contains unknown field `(?P<field>[^`]+)`(?: - at `(?P<place>[^`]+)`)?", mark("{place}: the field {field} is unknown")),
    (r"Invalid enum value (?P<value>'[^']*')(?: - at `(?P<place>[^`]+)`)?", mark("{place}: {value} is none of the values that it can have")),
    (r"Number out of range(?: - at `(?P<place>[^`]+)`)?", mark("{place}: the number is too large")),
    (r"JSON is malformed: .*\(byte (?P<byte>\d+)\)", mark("this is not JSON, from byte {byte} on")),
    (r"Input data was truncated", mark("this is not JSON: its end is missing")),
    (r"No such file or directory", mark("there is no such file or folder")),
    (r"Is a directory", mark("this is a folder")),
    (r"Not a directory", mark("this is no folder")),
    (r"Permission denied", mark("there is no permission to read it")),
    (r"field larger than field limit \(\d+\)", mark("a cell is too long")),
)  # fmt: skip


def sentence_of(said: str) -> Clause | None:
    """The same as a sentence; None for what is not known."""
    for pattern, message in _SAID:
        if found := re.fullmatch(pattern, said):
            holes = {name: value or "$" for name, value in found.groupdict().items() if name != "bound" or value}
            return Clause(message, **holes)
    return None
