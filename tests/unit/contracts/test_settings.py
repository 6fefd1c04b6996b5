from enum import StrEnum
from typing import Annotated, Literal

import msgspec
import pytest

from pd_contracts.settings import SettingsError, fields, from_command_line, load, parser_for


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Example(msgspec.Struct, frozen=True, kw_only=True):
    port: Annotated[int, msgspec.Meta(ge=1, le=65535, description="where to listen")] = 80
    rate: Annotated[float, msgspec.Meta(gt=0, description="100% of it")] = 1.5
    name: Annotated[str, msgspec.Meta(description="who")] = ""
    verbose: Annotated[bool, msgspec.Meta(description="say more")] = False
    gpus: Annotated[tuple[int, ...], msgspec.Meta(description="which")] = (0,)
    colour: Annotated[Colour, msgspec.Meta(description="paint")] = Colour.RED
    mode: Annotated[Literal["fast", "slow"], msgspec.Meta(description="how")] = "fast"
    limit: Annotated[int, msgspec.Meta(ge=0, description="at most")] | None = None

    def __post_init__(self) -> None:
        if self.mode == "slow" and self.rate > 100:
            msg = "MODE=slow goes with RATE up to 100"
            raise ValueError(msg)


class Demanding(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, msgspec.Meta(description="which model")]


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    log_level: Annotated[str, msgspec.Meta(pattern="(?i)^(debug|info)$", description="DEBUG or INFO")] = "INFO"


def test_a_pattern_is_told_by_its_description() -> None:
    with pytest.raises(SettingsError, match=r"LOG_LEVEL='loud' cannot be used: write text like DEBUG or INFO$"):
        load(Logged, {"LOG_LEVEL": "loud"})


def test_defaults_hold_where_nothing_is_set() -> None:
    assert load(Example, {}) == Example()


def test_every_kind_of_value_is_read() -> None:
    got = load(
        Example,
        {
            "PORT": "8080",
            "RATE": "2e1",
            "NAME": "a, b",
            "VERBOSE": "on",
            "GPUS": "1, 2,3,",
            "COLOUR": "green",
            "MODE": "slow",
            "LIMIT": "7",
        },
    )

    assert got == Example(
        port=8080, rate=20.0, name="a, b", verbose=True, gpus=(1, 2, 3), colour=Colour.GREEN, mode="slow", limit=7
    )


@pytest.mark.parametrize("variable", ["PORT", "RATE", "NAME", "VERBOSE", "GPUS", "COLOUR", "MODE", "LIMIT"])
def test_an_empty_variable_counts_as_unset(variable: str) -> None:
    assert load(Example, {variable: ""}) == Example()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("Yes", True),
        ("TRUE", True),
        ("1", True),
        ("off", False),
        ("No", False),
        ("false", False),
        ("0", False),
    ],
)
def test_switches_have_the_usual_spellings(text: str, value: bool) -> None:
    assert load(Example, {"VERBOSE": text}).verbose is value


def test_a_list_may_be_emptied_with_a_comma() -> None:
    assert load(Example, {"GPUS": ","}).gpus == ()


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("PORT", "http", "a whole number"),
        ("PORT", "0", "a whole number"),
        ("PORT", "8080.5", "a whole number"),
        ("RATE", "fast", "a number"),
        ("RATE", "nan", "a number"),
        ("VERBOSE", "maybe", "on or off"),
        ("GPUS", "1;2", "a list with commas, as in 0,1"),
        ("COLOUR", "blue", "one of red, green"),
        ("MODE", "medium", "one of fast, slow"),
        ("LIMIT", "-1", "a whole number"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_variable_value_and_form(
    variable: str, value: str, hint: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(Example, {variable: value})

    sentence = str(refusal.value)
    assert sentence.startswith(f"{variable}={value!r} cannot be used: write {hint}")


def test_a_combination_that_the_struct_refuses_keeps_its_sentence() -> None:
    with pytest.raises(SettingsError, match="MODE=slow goes with RATE up to 100"):
        load(Example, {"MODE": "slow", "RATE": "200"})


def test_a_required_setting_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="model"):
        load(Demanding, {})


def test_an_option_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("NAME", "from the environment")

    got = from_command_line(Example, "example", "An example.", ["--port", "2", "--gpus", "4,5"])

    assert (got.port, got.name, got.gpus) == (2, "from the environment", (4, 5))


def test_a_bad_value_on_the_command_line_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        from_command_line(Example, "example", "An example.", ["--rate", "0"])

    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert errors.startswith("example: --rate='0' cannot be used: write a number above 0")
    assert len(errors.splitlines()) == 1


def test_help_names_option_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser_for(Example, "example", "An example.").parse_args(["--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "--port INTEGER where to listen [PORT] (default 80)" in text
    assert "--rate NUMBER 100% of it [RATE] (default 1.5)" in text
    assert "--verbose on|off say more [VERBOSE] (default off)" in text
    assert "--colour red|green paint [COLOUR] (default red)" in text
    assert "--gpus INTEGER,… which [GPUS] (default 0)" in text
    assert "--name TEXT who [NAME]" in text


def test_fields_document_themselves() -> None:
    port, *_ = fields(Example)

    assert (port.name, port.variable, port.option, port.description, port.default) == (
        "port",
        "PORT",
        "--port",
        "where to listen",
        80,
    )
