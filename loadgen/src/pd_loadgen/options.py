"""What a run is asked to do: one frozen struct, filled from the command line, the environment or Locust's start form.

MODEL, HTTP_PROXY_PORT and RESULTS_DIR are read under the names that the whole stack knows; every other variable has the prefix LOADGEN_.
"""

import argparse
import os
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Final

import msgspec

from pd_contracts import settings
from pd_contracts.latency import parse_goodput
from pd_contracts.settings import Field, fields
from pd_loadgen.backends import Endpoint
from pd_loadgen.datasets import FIRST_TOKEN_ID, Dataset
from pd_loadgen.http1 import parse_url
from pd_loadgen.schedule import Arrival

_SHARED: Final = frozenset({"MODEL"})
_PREFIX: Final = "LOADGEN_"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Rates are requests a second over the whole deployment; tokens are per request."""

    url: Annotated[str, msgspec.Meta(description="base URL of the server")] = "http://127.0.0.1:10001"
    model: Annotated[str, msgspec.Meta(description="model name; empty takes the first that the server lists")] = ""
    dataset: Annotated[Dataset, msgspec.Meta(description="random: token ids, exact counts; text: natural language")] = (
        Dataset.RANDOM
    )
    input_tokens: Annotated[int, msgspec.Meta(description="prompt length (text: about)", ge=1)] = 512
    output_tokens: Annotated[int, msgspec.Meta(description="tokens to generate (max_tokens)", ge=1)] = 64
    rate: Annotated[float, msgspec.Meta(description="requests a second", gt=0)] = 2.0
    duration: Annotated[float, msgspec.Meta(description="seconds over which requests are sent", gt=0)] = 30.0
    arrival: Annotated[Arrival, msgspec.Meta(description="gaps between requests")] = Arrival.POISSON
    burstiness: Annotated[
        float, msgspec.Meta(description="shape of gamma gaps: 1 is Poisson, below it bursty", gt=0)
    ] = 1.0
    seed: Annotated[int, msgspec.Meta(description="equal seeds give equal schedules and prompts")] = 0
    warmup: Annotated[int, msgspec.Meta(description="requests before the window, with prompts of their own", ge=0)] = 0
    goodput: Annotated[str, msgspec.Meta(description='limits in ms, "ttft:200 tpot:50 e2el:5000"')] = ""
    endpoint: Annotated[Endpoint, msgspec.Meta(description="API to speak")] = Endpoint.COMPLETIONS
    ignore_eos: Annotated[bool, msgspec.Meta(description="generate all output tokens (vLLM's option)")] = True
    return_token_ids: Annotated[bool, msgspec.Meta(description="ask for token ids (vLLM's option)")] = False
    vocab_size: Annotated[
        int,
        msgspec.Meta(
            description="random token ids stay below it; keep it within the model's vocabulary", gt=FIRST_TOKEN_ID
        ),
    ] = 1000
    timeout: Annotated[float, msgspec.Meta(description="seconds until a request counts as failed", gt=0)] = 600.0
    ready_timeout: Annotated[float, msgspec.Meta(description="seconds to wait for the server at the start", ge=0)] = (
        10.0
    )
    lag_limit_ms: Annotated[
        float, msgspec.Meta(description="the run is INVALID if the client's own p99 lag is above this", gt=0)
    ] = 10.0
    idle: Annotated[
        float, msgspec.Meta(description="seconds without load before the window when power is recorded", ge=0)
    ] = 2.0
    monitor: Annotated[str, msgspec.Meta(description="base URL of pd-monitor; empty records no power")] = ""
    deployment: Annotated[str, msgspec.Meta(description="JSON file that describes what serves (written by pdctl)")] = ""
    label: Annotated[str, msgspec.Meta(description="short name of the deployment in tables and plots")] = ""
    title: Annotated[str, msgspec.Meta(description="title of the run")] = ""
    out: Annotated[str, msgspec.Meta(description="run folder; empty makes a new one below RESULTS_DIR (results)")] = ""
    overwrite: Annotated[bool, msgspec.Meta(description="replace an earlier run in the folder")] = False

    def __post_init__(self) -> None:
        """Refuse what cannot work together.

        Raises:
            ValueError: with a sentence.
        """
        parse_goodput([self.goodput])
        parse_url(self.url)
        if self.monitor:
            parse_url(self.monitor)
        if self.dataset is Dataset.RANDOM and self.endpoint is Endpoint.CHAT:
            msg = "dataset random sends token ids, which the chat endpoint does not take: use dataset text or endpoint completions"
            raise ValueError(msg)
        if self.burstiness != 1 and self.arrival is not Arrival.GAMMA:
            msg = f"burstiness {self.burstiness:g} needs arrival gamma"
            raise ValueError(msg)


def variable_of(field: Field) -> str:
    """The environment variable of an option."""
    return field.variable if field.variable in _SHARED else _PREFIX + field.variable


def load(given: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Options:
    """Make the options from what was given by hand (texts, by field name), then from variables.

    Raises:
        SettingsError: with one sentence about the first thing that does not fit.
    """
    source = os.environ if environment is None else environment
    values = {field.variable: source.get(variable_of(field), "") for field in fields(Options)}
    if not values["URL"] and source.get("HTTP_PROXY_PORT"):
        values["URL"] = f"http://127.0.0.1:{source['HTTP_PROXY_PORT']}"
    return settings.load(Options, values, given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option a field; `given` turns what they parse into texts for `load`."""
    for field in fields(Options):
        extra: dict[str, Any] = {"metavar": _metavar(field.default)}
        if isinstance(field.default, bool):
            extra = {"action": argparse.BooleanOptionalAction}
        elif field.name == "goodput":
            extra = {"nargs": "+", "metavar": "METRIC:MS"}
        parser.add_argument(
            field.option, dest=field.name, default=None, help=help_of(field).replace("%", "%%"), **extra
        )


def given(arguments: argparse.Namespace) -> dict[str, str]:
    """What was given on the command line, as texts by field name."""
    values = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    return {name: text_of(value) for name, value in values.items() if value is not None}


def help_of(field: Field) -> str:
    """The description with variable and default."""
    default = text_of(field.default)
    return f"{field.description} [{variable_of(field)}]" + (f" (default {default})" if default else "")


def text_of(value: Any) -> str:
    """A value as a variable or a form would hold it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, Enum) else value)


def choices_of(field: Field) -> list[str] | None:
    """The accepted texts, where they can be listed."""
    if isinstance(field.default, bool):
        return ["on", "off"]
    return [str(member.value) for member in type(field.default)] if isinstance(field.default, Enum) else None


def _metavar(default: Any) -> str:
    if isinstance(default, Enum):
        return "|".join(str(member.value) for member in type(default))
    return {int: "N", float: "X"}.get(type(default), "TEXT")
