"""Writes docs/configuration.md from the services' own settings; `--check` only says whether it is up to date."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from pd_contracts.settings import fields, shown
from pd_control.settings import ControlSettings
from pd_engine.settings import CheckSettings, EngineSettings
from pd_monitor.clocks.settings import ClockSettings
from pd_monitor.settings import Settings as MonitorSettings
from pd_proxy.settings import Settings as ProxySettings
from pd_simulator.settings import Settings as SimulatorSettings

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

Every service reads its settings from the environment; a command-line option of the same name (`HTTP_PROXY_PORT` is `--http-proxy-port`) overrides it.
An empty variable counts as unset.
`.env` holds what a deployment usually changes.
This page is written from the code by `python docs/write_configuration.py`.
"""
SERVICES: list[tuple[str, type[msgspec.Struct]]] = [
    ("Engines: prefill, decode, combined", EngineSettings),
    ("Probes and draining of engines", CheckSettings),
    ("Proxy", ProxySettings),
    ("Simulator", SimulatorSettings),
    ("Monitor", MonitorSettings),
    ("Clock control: pd-monitor clocks", ClockSettings),
    ("pdctl", ControlSettings),
]


def cell(default: Any) -> str:
    """A default in the table: nothing for what is unset, large numbers short."""
    if default is None or default in ((), ""):
        return ""
    return shown(default)


def page() -> str:
    parts = [HEAD]
    for title, settings in SERVICES:
        rows = [f"| `{field.variable}` | {cell(field.default)} | {field.description} |" for field in fields(settings)]
        parts.append("\n".join([f"## {title}\n", "| variable | default | meaning |", "| --- | --- | --- |", *rows]))
    return "\n".join([parts[0], "\n\n".join(parts[1:])]) + "\n"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return 0 if PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
