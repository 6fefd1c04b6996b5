"""argparse with errors of one sentence, in the language that the command line asks for."""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NoReturn

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


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        hint = tr("{program} --help lists the options", program=self.prog)
        self.exit(NOTHING, f"{self.prog}: {translated(message)}\n{hint}\n")


def translated(message: str) -> str:
    """One of argparse's messages in the current language; an unknown one stays as it is."""
    for pattern, sentence in _MESSAGES:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return tr(sentence, **found.groupdict())
    return message


def add_language(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--lang", choices=LANGUAGES, default="en", help="language of the answer and of errors (default en)"
    )


def language_of(words: Sequence[str]) -> str:
    """The language that a command line asks for, before it is parsed: its errors are in that language, too."""
    asked = [two for one, two in pairwise(words) if one == "--lang"]
    asked += [word.removeprefix("--lang=") for word in words if word.startswith("--lang=")]
    return asked[-1] if asked and asked[-1] in LANGUAGES else LANGUAGES[0]
