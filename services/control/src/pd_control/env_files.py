"""`.env` and `.env.local` as compose reads them, and which of their names no setting has.

python-dotenv reads the lines. A name that pdstack does not know is not an error, because engines and libraries have their own variables.
But a mistyped name would silently leave a default in force, so each unknown name is reported with the nearest known one.
"""

import difflib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
from dotenv.parser import parse_stream
from dotenv.variables import parse_variables

from pd_contracts.libraries import plain
from pd_contracts.settings import SettingsError, fields

FILES: Final = (".env", ".env.local")
# Variables of other software that deployments set: NCCL, vLLM, Hugging Face and others.
_FOREIGN: Final = re.compile(
    r"(NCCL|UCX|GLOO|VLLM|HF|HUGGING_FACE|CUDA|NVIDIA|TORCH|PYTORCH|TRITON|OMP|MKL|RAY|NIXL|LMCACHE|OTEL|FLASHINFER|COMPOSE|DOCKER"
    r"|PYTHON|PIP|UV|LOCUST|GF|PD)_\w+|(HTTPS?|NO|ALL)_PROXY|TZ|LANG|LC_\w+|PATH|HOME|TMPDIR|LD_LIBRARY_PATH",
    re.IGNORECASE,
)
_IN_COMPOSE: Final = re.compile(r"\$\{([A-Za-z_]\w*)")
_SINGLE_QUOTED: Final = re.compile(r"=\s*'")
_NEAR: Final = 0.75
# The environment has many foreign names; only those that differ from ours by a letter or two are reported.
_NEARLY_THE_SAME: Final = 0.9


class Line(msgspec.Struct, frozen=True):
    """One line that sets something, or that cannot be read: then its name is empty."""

    number: int
    name: str
    value: str


def read(text: str, known: Mapping[str, str] | None = None) -> Iterator[Line]:
    """The lines of a file; `${NAME}` and `${NAME:-default}` take earlier lines and `known`, single quotes keep them as they are."""
    values = dict(known or {})
    for binding in parse_stream(io.StringIO(text)):
        original = binding.original.string
        number = binding.original.line + len(original) - len(original.lstrip("\n"))
        if binding.error:
            yield Line(number, "", original.strip())
        elif binding.key is not None and binding.value is not None:
            literal = _SINGLE_QUOTED.search(original)
            there = {name: value for name, value in values.items() if value}
            atoms = [] if literal else parse_variables(binding.value)
            values[binding.key] = binding.value if literal else "".join(atom.resolve(there) for atom in atoms)
            yield Line(number, binding.key, values[binding.key])


def values_of(path: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a file sets; nothing if it is not there."""
    return {line.name: line.value for line in read(_text(path), known) if line.name}


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path.name} cannot be read: {plain(error)}"
        raise SettingsError(msg) from error
    if "\0" in text:  # no variable of a process may hold one
        line = text[: text.index("\0")].count("\n") + 1
        msg = f"{path.name} cannot be read: line {line} holds a NUL byte, as in UTF-16: save the file as UTF-8"
        raise SettingsError(msg)
    return text


def environment(root: Path, own: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables in force: the process's own take precedence over `.env.local`, and that over `.env`."""
    merged: dict[str, str] = {}
    for name in FILES:
        merged.update(values_of(root / name, merged))
    merged.update(os.environ if own is None else own)
    return merged


def complaints(root: Path, own: Mapping[str, str]) -> list[str]:
    """A warning for each line of the files that sets no known variable, and for each misspelt name in the environment."""
    known = known_names(root)
    in_files = [
        sentence
        for name in FILES
        for line in read(_text(root / name))
        if (sentence := _complaint(f"{name}:{line.number}", line, known))
    ]
    return in_files + [
        f"environment: no setting is called {name}; did you mean {near[0]}?"
        for name in sorted(own)
        if "_" in name and name not in known and not _FOREIGN.fullmatch(name)
        if (near := difflib.get_close_matches(name, known, 1, _NEARLY_THE_SAME))
    ]


def _complaint(place: str, line: Line, known: Iterable[str]) -> str:
    if not line.name:
        return f"{place}: {line.value[:60]!r} is not NAME=value and sets nothing"
    if line.name in known or _FOREIGN.fullmatch(line.name):
        return ""
    near = difflib.get_close_matches(line.name.upper(), known, 1, _NEAR)
    return f"{place}: no setting is called {line.name}" + (f"; did you mean {near[0]}?" if near else "")


@cache
def known_names(root: Path) -> frozenset[str]:
    """Every variable of pdstack's programs, and those that compose fills in."""
    compose = root / "docker-compose.yml"
    used = _IN_COMPOSE.findall(compose.read_text(encoding="utf-8")) if compose.exists() else []
    return frozenset({*used, *(field.variable for struct in _structs() for field in fields(struct)), *_of_loadgen()})


def _structs() -> list[type[msgspec.Struct]]:
    # Imported late, because these are whole programs, needed only to check a file.
    from pd_analysis.settings import Settings as AnalysisSettings  # noqa: PLC0415
    from pd_control.settings import ControlSettings  # noqa: PLC0415
    from pd_engine.settings import CheckSettings, EngineSettings  # noqa: PLC0415
    from pd_monitor.clocks.settings import ClockSettings  # noqa: PLC0415
    from pd_monitor.settings import Settings as MonitorSettings  # noqa: PLC0415
    from pd_proxy.settings import Settings as ProxySettings  # noqa: PLC0415
    from pd_simulator.settings import Settings as SimulatorSettings  # noqa: PLC0415

    return [
        *(ControlSettings, EngineSettings, CheckSettings, ProxySettings),
        *(SimulatorSettings, MonitorSettings, ClockSettings, AnalysisSettings),
    ]


def _of_loadgen() -> Iterator[str]:
    from pd_loadgen.client.access import KEY_VARIABLE  # noqa: PLC0415
    from pd_loadgen.workload.options import Options, variable_of  # noqa: PLC0415

    yield KEY_VARIABLE
    yield from (variable_of(field) for field in fields(Options))
