"""What a run is asked to do, filled from the command line, the environment or Locust's start form.

MODEL, HTTP_PROXY_PORT and RESULTS_DIR are read under the names that the whole stack knows; every other variable has the prefix LOADGEN_.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any, Final

from pd_contracts import settings
from pd_contracts.latency import parse_goodput
from pd_contracts.settings import Field, SettingsError, fields, shown
from pd_contracts.urls import without_secret
from pd_loadgen.client.access import parse_extra, parse_headers
from pd_loadgen.client.address import Address, parse_url, understand
from pd_loadgen.prompts.media import parse_size
from pd_loadgen.workload.conflicts import UnfitError, conflict
from pd_loadgen.workload.option_fields import OptionFields
from pd_loadgen.workload.option_groups import by_subject
from pd_loadgen.workload.schedule import Arrival

_SHARED: Final = frozenset({"MODEL"})
_PREFIX: Final = "LOADGEN_"
# vLLM's name; Locust has an option of that name for itself.
_ALIASES: Final = {"engine_profile": ("--profile",)}


class Options(OptionFields, frozen=True, kw_only=True):
    """The options of one run, which fit together."""

    def __post_init__(self) -> None:
        """Refuse options that exclude each other.

        Raises:
            ValueError: with a sentence.
        """
        parse_goodput([self.goodput])
        parse_url(self.url)
        parse_headers(self.headers)
        parse_extra(self.extra_body)
        parse_size(self.image_size)
        for url in filter(None, (self.monitor, *self.profile_urls)):
            if without_secret(url) != url:
                msg = f"{without_secret(url)} was given with a password, which these pages do not accept: remove it"
                raise ValueError(msg)
            parse_url(url)
        if problem := conflict(self):
            raise UnfitError(problem.message, **problem.holes)


def variable_of(field: Field) -> str:
    """The environment variable of an option."""
    return field.variable if field.variable in _SHARED else _PREFIX + field.variable


def load(given: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Options:
    """Make the options from what was given by hand (texts, by field name), then from variables.

    The URL may end with `/v1` or an API's path, and hold a password, which the options do not keep (`address` returns it).
    A trace without an arrival is replayed.

    Raises:
        SettingsError: with one sentence about the first thing that does not fit.
    """
    source = os.environ if environment is None else environment
    values = {field.variable: source.get(variable_of(field), "") for field in fields(Options)}
    if not values["URL"] and source.get("HTTP_PROXY_PORT"):
        values["URL"] = f"http://127.0.0.1:{source['HTTP_PROXY_PORT']}"
    texts = _addressed(given, values)
    if (texts.get("trace") or values["TRACE"]) and not (texts.get("arrival") or values["ARRIVAL"]):
        texts["arrival"] = Arrival.REPLAY
    return settings.load(Options, values, texts, variable_of)


def address(given: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Address:
    """The server's address as it was given, password included."""
    source = os.environ if environment is None else environment
    return understand(given.get("url") or source.get(f"{_PREFIX}URL", ""))


def _addressed(given: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """The given texts, with `url` reduced to the base of the server's pages; a user's own path follows it."""
    texts = dict(given)
    found = understand(texts.get("url") or values["URL"])
    if found.url:
        texts["url"] = found.url
    if found.endpoint and found.endpoint != (texts.setdefault("endpoint", values["ENDPOINT"] or found.endpoint)):
        msg = f"the URL ends with the path of endpoint {found.endpoint}, but the endpoint is {texts['endpoint']}: choose one"
        raise SettingsError(msg)
    path = texts.get("path") or values["PATH"]
    if found.version and path and not path.startswith(f"{found.version}/"):
        texts["path"] = f"{found.version}/{path.lstrip('/')}"
    return texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option a field, by subject; `given` turns what they parse into texts for `load`."""
    for title, chosen in by_subject(fields(Options)).items():
        group = parser.add_argument_group(title)
        for field in chosen:
            _add(group, field)


def _add(group: Any, field: Field) -> None:
    extra: dict[str, Any] = {"metavar": settings.metavar(field.type)}
    if isinstance(field.default, bool):
        extra = {"action": argparse.BooleanOptionalAction}
    elif field.name == "goodput":
        extra = {"nargs": "+", "metavar": "METRIC:MS"}
    names = (field.option, *_ALIASES.get(field.name, ()))
    group.add_argument(*names, dest=field.name, default=None, help=help_of(field), **extra)


def given(arguments: argparse.Namespace) -> dict[str, str]:
    """What was given on the command line, as texts by field name."""
    values = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    return {name: _text(value) for name, value in values.items() if value is not None}


def help_of(field: Field) -> str:
    """The description with variable and default."""
    return settings.help_of(field, variable_of(field))


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else shown(value)
