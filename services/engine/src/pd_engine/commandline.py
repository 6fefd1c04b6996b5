"""The final value of each option in the arguments of `vllm serve`, by vLLM's own rules.

Later options win over earlier ones. A name may be shortened as far as it stays unique, and written with underscores. `--a.b=1`
stands for `--a '{"b": 1}'` and replaces what `--a` said before. A file given by `--config` counts less than the command line.
(vLLM 0.23.0 to 0.33.0, `vllm/utils/argparse_utils.py`; the names are in vllm_options.txt.)
"""

import argparse
import functools
import importlib.resources
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

# Read in the order of vLLM's own code: "25.6k" has a decimal factor, "25K" a binary one.
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# How the options for draft models began before vLLM's V1 engine.
_GONE: Final = ("--speculative-", "--num-speculative-tokens", "--ngram-prompt-lookup")
_SWITCHES: Final = {"--enable-": "enable_", "--disable-": "disable_"}


class CommandLineError(ValueError):
    """vLLM would reject these arguments; the message says which."""


class CommandLine(msgspec.Struct, frozen=True):
    """The values that were given, by vLLM's name of the option: text, a switch, or a list of texts."""

    given: dict[str, str | bool | list[str]]

    def text(self, name: str) -> str | None:
        """The value as it was written, lists joined by blanks; None if the option is not given."""
        value = self.given.get(name)
        return value if value is None else " ".join(value) if isinstance(value, list) else str(value)

    def words(self, name: str) -> list[str]:
        """The values of an option that takes several; empty if it is not given."""
        value = self.given.get(name)
        return value if isinstance(value, list) else []

    def on(self, name: str) -> bool | None:
        """Whether a switch is on; None if it is not given."""
        value = self.given.get(name)
        return value if isinstance(value, bool) else None

    def number(self, name: str) -> float | None:
        """A number as vLLM reads it (1k is 1000, 1K is 1024); None if the option is not given or is not a number."""
        return number(self.text(name) or "")

    def object(self, name: str) -> dict[str, Any]:
        """A JSON object; empty if the option is not given or is no object."""
        try:
            value = json.loads(self.text(name) or "{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def parse(arguments: Sequence[str], config: Mapping[str, Any] | None = None) -> CommandLine:
    """Read the arguments after `vllm serve`, the model first; `config` has the options of the file that `--config` names.

    Raises:
        CommandLineError: if vLLM would refuse them for their form.
    """
    words = _dotted([*_spelt(_with_config(_model_first(arguments), config or {}))])
    parser = _parser()
    values, unknown = parser.parse_known_args(words)  # unknown are those of a later vLLM than the table knows
    if old := [word for word in unknown if word.startswith(_GONE)]:
        msg = f"{old[0]} is an option of older versions, which --speculative-config replaced"
        raise CommandLineError(msg)
    return CommandLine({name: value for name, value in vars(values).items() if value is not None})


def config_path(arguments: Sequence[str]) -> str | None:
    """The file that vLLM would read further options from."""
    for position, word in enumerate(arguments):
        if word == "--config":
            return arguments[position + 1] if position + 1 < len(arguments) else None
    return None


def number(text: str) -> float | None:
    """A number with or without a factor; None for anything else."""
    plain = text.strip()
    factor = {**_DECIMAL, **_BINARY}.get(plain[-1:], 1)
    try:
        value = float(plain if factor == 1 else plain[:-1]) * factor
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _model_first(arguments: Sequence[str]) -> list[str]:
    # vLLM puts what `--model` names in the place of the model that comes first, which then has no place any more.
    words = list(arguments)
    for position, word in enumerate(words):
        if word == "--model" and position + 1 < len(words):
            return [words[position + 1], *words[:position], *words[position + 2 :]]
        if word.startswith("--model="):
            return [word.partition("=")[2], *words[:position], *words[position + 1 :]]
    return words


def _with_config(words: list[str], config: Mapping[str, Any]) -> list[str]:
    # Right after the model, so that the command line, read later, wins.
    return [*words[:1], *_flattened(config), *words[1:]]


def _flattened(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        option = f"--{name}"
        if value is False or value == []:
            continue  # vLLM leaves it out, and the default holds
        yield option
        if isinstance(value, dict):
            yield json.dumps(value)
        elif isinstance(value, list):
            yield from map(str, value)
        elif value is not True:
            yield str(value)


def _dashes(word: str) -> str:
    """Dashes for underscores, up to the first dot or equals sign."""
    if not word.startswith("--"):
        return word
    end = re.search(r"[.=]", word)
    at = end.start() if end else len(word)
    return word[:at].replace("_", "-") + word[at:]


def _spelt(words: Sequence[str]) -> Iterator[str]:
    """`-O2`, `-O 2` and `-O=2` by the option's name."""
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word == "-O" and following in ("0", "1", "2", "3"):
            yield "--optimization-level"
        elif word.startswith("-O") and word != "-O":
            yield f"--optimization-level={word[2:].removeprefix('=')}"
        else:
            yield word


def _dotted(words: Sequence[str]) -> list[str]:
    """Parts of JSON objects, gathered and put at the end, as vLLM does."""
    kept: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    rest = iter(map(_dashes, words))
    for word in rest:
        name, equals, value = word.partition("=")
        if not (word.startswith("-") and "." in name):
            kept.append(word)
            continue
        option, *path = name.removesuffix("+").split(".")
        text = value if equals else next(rest, "")
        _merge(objects.setdefault(option, {}), path, text.split(",") if name.endswith("+") else _scalar(text))
    for option, parts in objects.items():
        kept += [option, json.dumps(parts)]
    return kept


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        found = number(text)
        return text if found is None else int(found)


def _merge(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *above, last = path
    for key in above:
        below = target.get(key)
        target = target.setdefault(key, {}) if isinstance(below, dict) or key not in target else _replaced(target, key)
    if isinstance(value, list) and isinstance(target.get(last), list):
        target[last] += value
    elif isinstance(value, dict) and isinstance(target.get(last), dict):
        target[last] = {**target[last], **value}
    else:
        target[last] = value


def _replaced(target: dict[str, Any], key: str) -> dict[str, Any]:
    target[key] = {}
    below: dict[str, Any] = target[key]
    return below


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandLineError(message)


class _Switch(argparse.Action):
    """On or off by the spelling: `--no-x` is off, and so is `--disable-x` where the option is called `enable_x`."""

    def __call__(
        self, _parser: Any, namespace: argparse.Namespace, _values: Any, option_string: str | None = None
    ) -> None:
        spelling = str(option_string)
        other = any(spelling.startswith(start) and not self.dest.startswith(own) for start, own in _SWITCHES.items())
        turned = self.dest.startswith(tuple(_SWITCHES.values())) and other
        setattr(namespace, self.dest, not (spelling.startswith("--no-") or turned))


@functools.cache
def _parser() -> _Parser:
    parser = _Parser(add_help=False, argument_default=None)
    parser.add_argument("model_tag", nargs="?")
    for line in importlib.resources.files("pd_engine").joinpath("vllm_options.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, arity, *spellings = line.split()
        if arity == "0":
            parser.add_argument(*spellings, dest=name, nargs=0, action=_Switch)
        else:
            parser.add_argument(*spellings, dest=name, nargs=None if arity == "1" else arity)
    return parser
