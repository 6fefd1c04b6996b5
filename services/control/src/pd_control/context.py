"""The context of every command, made once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pd_contracts.settings import load
from pd_control.env_files import environment
from pd_control.settings import ControlSettings, find_root
from pd_control.supervision.state import Store
from pd_control.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class Context:
    """The repository, the variables in force and the settings from them, the state on disk, and the terminal."""

    root: Path
    own: Mapping[str, str]
    environment: Mapping[str, str]
    settings: ControlSettings
    store: Store
    terminal: Terminal


def open_context(start: Path, own: Mapping[str, str], *, dotenv: bool = True, folder: str = "") -> Context:
    """Read settings around `start`, with or without the repository's `.env`. The state is kept in `folder`, below the state folder.

    Raises:
        SettingsError: for a variable that cannot be used.
    """
    root = find_root(start)
    variables = environment(root, own) if dotenv else dict(own)
    settings = load(ControlSettings, variables)
    return Context(
        root=root,
        own=own,
        environment=variables,
        settings=settings,
        store=Store(root / settings.state_dir / folder),
        terminal=Terminal(),
    )
