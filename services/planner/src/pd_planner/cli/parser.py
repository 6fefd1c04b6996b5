"""argparse with help and errors in the language that the command line asks for; an error is one sentence."""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NoReturn

from rich.cells import cell_len

from pd_analysis.words.language import LANGUAGES, mark, tr

NOTHING: Final = 2  # exit status: bad options, or nothing to work with
# argparse's own messages, each with its sentence here.
_MESSAGES: Final = (
    (r"the following arguments are required: (?P<names>.+)", mark("the following arguments are required: {names}")),
    (r"unrecognized arguments: (?P<words>.+)", mark("unrecognized arguments: {words}")),
    (
        r"ambiguous option: (?P<option>\S+) could match (?P<names>.+)",
        mark("ambiguous option: {option} could match {names}"),
    ),
    (r"argument (?P<option>[^:]+): expected (one|at least one) argument", mark("argument {option}: needs a value")),
    (
        r"argument (?P<option>[^:]+): invalid choice: (?P<value>.+) \(choose from (?P<choices>.+)\)",
        mark("argument {option}: invalid choice: {value} (choose from {choices})"),
    ),
    (r"argument (?P<option>[^:]+): (?P<reason>.+)", mark("argument {option}: {reason}")),
)


# argparse's own words in its help.
_WORDS: Final = (
    (r"(?m)^usage:", mark("usage:")),
    (r"(?m)^options:$", mark("options:")),
    (r"(?m)^positional arguments:$", mark("positional arguments:")),
    (r"show this help message and exit", mark("show this help message and exit")),
)


# A word, or a Chinese character, with the punctuation that must not be separated from it.
_UNBREAKABLE: Final = re.compile(r"[（“]?(?:[\u3400-\u9fff]|[^\s\u3400-\u9fff，。；：、（）“”]+)[，。；：、）”]*\s*|\S")


class Help(argparse.HelpFormatter):
    """Breaks lines by the columns that they take in a terminal: a Chinese character takes two, and may end a line."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _lines(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}" for line in self._split_lines(text, width))


class RawDescription(Help):
    """As `Help`; the lines of description and examples stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # noqa: ARG002 - argparse passes a width
        return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))


class Parser(argparse.ArgumentParser):
    """A parser whose help and errors are in the current language; an error is one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Help, **settings})

    def format_help(self) -> str:
        text = super().format_help()
        for pattern, word in _WORDS:
            text = re.sub(pattern, lambda _, word=word: tr(word), text, count=1)  # type: ignore[misc]
        return text

    def error(self, message: str) -> NoReturn:
        hint = tr("{program} --help lists the options", program=self.prog)
        self.exit(NOTHING, f"{self.prog}: {translated(message)}\n{hint}\n")


def _lines(text: str, width: int) -> list[str]:
    lines = [""]
    for piece in _UNBREAKABLE.findall(text):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def translated(message: str) -> str:
    """One of argparse's messages in the current language; an unknown one stays as it is."""
    for pattern, sentence in _MESSAGES:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return tr(sentence, **found.groupdict())
    return message


def add_language(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--lang",
        choices=LANGUAGES,
        default="en",
        help=tr("language of the answer, of errors and of this help (default en)"),
    )


def language_of(words: Sequence[str]) -> str:
    """The language that a command line asks for, before it is parsed: its errors are in that language, too."""
    asked = [two for one, two in pairwise(words) if one == "--lang"]
    asked += [word.removeprefix("--lang=") for word in words if word.startswith("--lang=")]
    return asked[-1] if asked and asked[-1] in LANGUAGES else LANGUAGES[0]
