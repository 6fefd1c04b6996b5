"""A service's settings: one frozen struct with every default in sight, read once from environment and options.

Field `http_proxy_port` is read from HTTP_PROXY_PORT and can be overridden with `--http-proxy-port`. The field's
`msgspec.Meta(description=…, ge=…)` is its documentation and its check. Tuples are comma-separated lists.
"""

import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar

import msgspec

from pd_contracts.arguments import Parser
from pd_contracts.sentences import Clause, SentenceError

S = TypeVar("S", bound=msgspec.Struct)


class SettingsError(SentenceError, ValueError):
    """A setting cannot be used; the message names the variable or option and the accepted form."""


class Field(msgspec.Struct, frozen=True):
    """One setting, for documentation and options."""

    name: str
    variable: str
    option: str
    description: str
    default: Any
    type: Any


def fields(type_: type[msgspec.Struct]) -> list[Field]:
    """All settings of a struct, in order."""
    hints = typing.get_type_hints(type_, include_extras=True)
    return [
        Field(
            name=field.name,
            variable=field.name.upper(),
            option="--" + field.name.replace("_", "-"),
            description=_description(hints[field.name]),
            default=None if field.default is msgspec.NODEFAULT else field.default,
            type=hints[field.name],
        )
        for field in msgspec.structs.fields(type_)
    ]


def variable_of(field: Field) -> str:
    """The variable of a setting that every program knows under its own name."""
    return field.variable


def load(
    type_: type[S],
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
    named: Callable[[Field], str] = variable_of,
) -> S:
    """Make the settings from variables (the process's own unless given), then from `overrides` by field name.

    An empty variable counts as unset, because compose passes unset variables as empty ones.
    A message names what was written: the option for an override, and for a variable what `named` says.

    Raises:
        SettingsError: for the first value that does not fit.
    """
    source = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for field in fields(type_):
        given = (overrides or {}).get(field.name)
        text = given or source.get(field.variable, "")
        if text != "":
            values[field.name] = _convert(field, text, field.option if given else named(field))
    try:
        return type_(**values)
    except (TypeError, ValueError) as error:
        # a struct's own __post_init__ refuses combinations; a missing required field is a TypeError
        if isinstance(error, SentenceError):
            raise SettingsError(error.message, **error.holes) from error
        raise SettingsError(str(error)) from error


def parser_for(type_: type[msgspec.Struct], prog: str, description: str) -> Parser:
    """An option parser with one option a setting; what it returns feeds `load(overrides=…)`."""
    parser = Parser(prog=prog, description=description)
    for field in fields(type_):
        parser.add_argument(
            field.option, metavar=metavar(field.type), dest=field.name, help=help_of(field, field.variable)
        )
    return parser


def help_of(field: Field, variable: str) -> str:
    """An option's help: the description, its variable and its default."""
    default = "" if field.default in (None, "", ()) else f" (default {shown(field.default)})"
    return f"{field.description} [{variable}]{default}".replace("%", "%%")


def from_command_line(type_: type[S], prog: str, description: str, arguments: Sequence[str] | None = None) -> S:
    """Read options and environment; on a bad value print one sentence and exit with status 2."""
    parser = parser_for(type_, prog, description)
    options = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return load(type_, overrides=options)
    except SettingsError as error:
        parser.exit(2, f"{prog}: {error}\n")


def _convert(field: Field, text: str, name: str) -> Any:
    plain = _plain(field.type)
    value: Any = text
    if typing.get_origin(plain) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif plain is bool:
        value = {"on": "true", "yes": "true", "off": "false", "no": "false"}.get(text.lower(), text)
    try:
        return msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(
            "{variable}={text} cannot be used: write {accepted}",
            variable=name,
            text=repr(text),
            accepted=accepted(field.type),
        ) from error


def accepted(hint: Any) -> Clause:
    """What a setting takes, in words: "a whole number of at least 1"."""
    plain = _plain(hint)
    if typing.get_origin(plain) is tuple:
        item = typing.get_args(plain)[0]
        example = {int: "0,1", float: "1,2.5"}.get(_plain(item), "a,b")
        return Clause(
            "a list with commas, as in {example}, of which each is {item}", example=example, item=accepted(item)
        )
    if typing.get_origin(plain) is Literal or (isinstance(plain, type) and issubclass(plain, Enum)):
        return Clause("one of {values}", values=metavar(plain).replace("|", ", "))
    kind = _KINDS.get(plain, Clause("another value"))
    limits = _limits(hint)
    if not limits:
        return kind
    both = limits[0]
    for limit in limits[1:]:
        both = Clause("{limit} and {further}", limit=both, further=limit)
    return Clause("{kind} {limit}", kind=kind, limit=both)


_KINDS = {int: Clause("a whole number"), float: Clause("a number"), bool: Clause("on or off"), str: Clause("text")}
_LIMITS = {
    "ge": Clause("of at least {value}"),
    "gt": Clause("above {value}"),
    "le": Clause("up to {value}"),
    "lt": Clause("below {value}"),
    "pattern": Clause("like {value}"),
    "min_length": Clause("of at least {value} characters"),
}


def _limits(hint: Any) -> list[Clause]:
    """The bounds of an annotated type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [limit for arg in typing.get_args(hint) for limit in _limits(arg)]
    if typing.get_origin(hint) is not typing.Annotated:
        return []
    inner, *metas = typing.get_args(hint)
    found = [
        Clause(words.message, value=_bound(name, value, meta))
        for meta in metas
        if isinstance(meta, msgspec.Meta)
        for name, words in _LIMITS.items()
        if (value := getattr(meta, name)) is not None
    ]
    return _limits(inner) + found


def _bound(name: str, value: Any, meta: msgspec.Meta) -> Any:
    """A bound in words; a pattern is for programs, and its setting's description says the same to readers."""
    if name == "pattern":
        return meta.description or value
    return f"{value:g}" if isinstance(value, float) else value


def _plain(hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _plain(next(arg for arg in typing.get_args(hint) if arg is not type(None)))
    return hint


def metavar(hint: Any) -> str:
    """What stands for a value of the type in help and errors: INTEGER, TEXT,…, on|off."""
    plain = _plain(hint)
    if typing.get_origin(plain) is tuple:
        return f"{metavar(typing.get_args(plain)[0])},…"
    if typing.get_origin(plain) is Literal:
        return "|".join(map(str, typing.get_args(plain)))
    if isinstance(plain, type) and issubclass(plain, Enum):
        return "|".join(str(member.value) for member in plain)
    return {int: "INTEGER", float: "NUMBER", bool: "on|off", str: "TEXT"}.get(plain, "VALUE")


def _description(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        for meta in typing.get_args(hint)[1:]:
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    return ""


def shown(default: Any) -> str:
    """A default as one would type it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(map(shown, default))
    if isinstance(default, float):
        return f"{default:g}"
    return str(default.value if isinstance(default, Enum) else default)


def choices(field: Field) -> list[str] | None:
    """The accepted texts, where they can be listed."""
    if isinstance(field.default, bool):
        return ["on", "off"]
    return [str(member.value) for member in type(field.default)] if isinstance(field.default, Enum) else None
