"""Profiles as documents: every number of the model of one GPU, one engine and one network, in a TOML file. `pd-plan calibrate` writes them.

The simulator and the planner read all of one, the proxy what its predictions need.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pd_contracts.libraries import plain
from pd_contracts.sentences import SentenceError

_SUFFIX = ".toml"


class ProfileError(SentenceError, ValueError):
    """There is no such profile, or its file is no TOML; the message says what was expected."""


def shipped() -> list[str]:
    """Names of the profiles that come with pdstack."""
    return sorted(
        e.name.removesuffix(_SUFFIX) for e in resources.files(__package__).iterdir() if e.name.endswith(_SUFFIX)
    )


def document(name: str) -> dict[str, Any]:
    """A shipped profile by name, or any profile by path (anything that ends in `.toml`).

    A file with `base = "NAME"` is that profile but for the keys beside it; with `slower = N` every time of it is multiplied.

    Raises:
        ProfileError: if there is none, or it cannot be read.
    """
    if not name.endswith(_SUFFIX) and name not in shipped():
        raise ProfileError(
            "no profile {name}: expected one of {names}, or the path of a TOML file",
            name=repr(name),
            names=", ".join(shipped()),
        )
    try:
        read = tomllib.loads(_text(name))
    except OSError as error:
        raise ProfileError("the profile {name} cannot be read: {reason}", name=name, reason=plain(error)) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError("the profile {name} cannot be read: {reason}", name=name, reason=plain(error)) from error
    return _inherited(read) if "base" in read else read


def _text(name: str) -> str:
    if name.endswith(_SUFFIX):
        return Path(name).read_text(encoding="utf-8")
    return (resources.files(__package__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def _inherited(read: dict[str, Any]) -> dict[str, Any]:
    base, slower = str(read.pop("base")), read.pop("slower", 1)
    if base not in shipped():
        raise ProfileError("base {base}: expected one of {names}", base=repr(base), names=", ".join(shipped()))
    if not isinstance(slower, int | float) or not slower > 0:
        raise ProfileError("slower: expected a number above 0, got {value}", value=repr(slower))
    inherited = _slowed(document(base), slower)
    if slower != 1:
        inherited.pop("provenance", None)  # nobody measured it
    return {**inherited, **read}


def _slowed(table: dict[str, Any], factor: float) -> dict[str, Any]:
    """A table with all its times multiplied, nanoseconds and seconds too."""
    return {key: _longer(key, value, factor) for key, value in table.items()}


def _longer(key: str, value: Any, factor: float) -> Any:
    if isinstance(value, dict):
        return _slowed(value, factor)
    if key != "ms" and not key.endswith(("_ms", "_ns", "_s")):
        return value
    return [each * factor for each in value] if isinstance(value, list) else value * factor
