"""argparse with readable errors: for an unknown option or command it suggests the nearest existing one."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the usage of all options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Look for unknown options first: argparse would misread the words after one, and its error would be about those."""
        self._refuse_unknown(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the error and how to get help; exit status 2."""
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists the options\n")

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        if self._subparsers is not None:
            return  # the words belong to the command
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                self.error(f"there is no option {name}{nearest(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices and isinstance(value, str):
            known = [str(choice) for choice in action.choices]
            names = "/".join(action.option_strings)
            what = f"{names} value" if names else str(action.metavar or action.dest).lower()
            msg = f"there is no {what} {value!r}{nearest(value, known)}"
            raise argparse.ArgumentError(None, f"{msg or ''}; there are: {', '.join(known)}")
        super()._check_value(action, value)


# Least ratio by difflib: a typing error has at least 0.8, "--rate" and "--patience" have 0.63.
SIMILAR: Final = 0.75


def nearest(word: str, known: Iterable[str]) -> str:
    """A question with the most similar known word; empty if none is similar."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=SIMILAR)
    return f" (did you mean {found[0]}?)" if found else ""
