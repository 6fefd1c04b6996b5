"""`pdctl config`: the variables in force and where each comes from."""

import argparse
from collections.abc import Mapping

import msgspec
from rich.text import Text

from pd_contracts.settings import fields, shown
from pd_control.context import Context
from pd_control.env_files import FILES, values_of
from pd_control.settings import ControlSettings
from pd_control.terminal import table_of
from pd_engine.settings import EngineSettings

COLUMNS = ("variable", "value", "from")


class Setting(msgspec.Struct, frozen=True):
    """A variable, its value and its source."""

    variable: str
    value: str
    source: str


def settings_in_force(own: Mapping[str, str], files: Mapping[str, Mapping[str, str]]) -> list[Setting]:
    """Every variable of pdctl and of engines: from the environment, or the first of `files` that has it, or the default."""
    defaults: dict[str, str] = {}
    for struct in (ControlSettings, EngineSettings):
        for field in fields(struct):
            defaults.setdefault(field.variable, "" if field.default is None else shown(field.default))
    for name in ("PD_ROLE", "INSTANCE"):
        defaults.pop(name)  # every process gets its own
    return [_setting(name, default, own, files) for name, default in sorted(defaults.items())]


def _setting(name: str, default: str, own: Mapping[str, str], files: Mapping[str, Mapping[str, str]]) -> Setting:
    if name in own:
        return Setting(name, own[name], "environment")
    for file, values in files.items():
        if name in values:
            return Setting(name, values[name] or default, file if values[name] else "default")
    return Setting(name, default, "default")


def show(context: Context, _options: argparse.Namespace) -> int:
    found = settings_in_force(context.own, {name: values_of(context.root / name) for name in reversed(FILES)})
    rows = [
        (one.variable, one.value, Text(one.source, "dim" if one.source == "default" else "cyan"))
        for one in found
        if one.value or one.source != "default"
    ]
    context.terminal.table(table_of(rows, COLUMNS))
    context.terminal.note(
        "the environment wins over .env.local, and that over .env; docs/configuration.md explains each"
    )
    return 0
