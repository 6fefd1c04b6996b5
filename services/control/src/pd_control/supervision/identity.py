"""The identity of a deployment: a name and a key, made once for each state folder, so that deployments on one host do not mix.

Engines on other hosts cannot know the key. For those, set the same PING_KEY and DEPLOYMENT on every host.
"""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from pd_control.settings import LOOPBACK, ControlSettings

FILE: Final = "identity.json"
SAID: Final = ("DEPLOYMENT", "PING_KEY", "PING_KEY_FILE")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Name and key that all engines and the proxy of one deployment share."""

    deployment: str
    ping_key: str

    def variables(self) -> dict[str, str]:
        """As the environment of a process. Every engine that pdctl starts signs its pings, so the proxy accepts no others."""
        return {"DEPLOYMENT": self.deployment, "PING_KEY": self.ping_key, "UNSIGNED_PINGS": "off"}


def variables(folder: Path, settings: ControlSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Identity variables for the processes of this state folder; none if the environment sets them, or for several hosts."""
    one_host = {settings.heard_on, settings.proxy_host} <= set(LOOPBACK)
    if any(environment.get(name) for name in SAID) or not one_host:
        return {}
    return _kept(folder / FILE).variables()


def _kept(path: Path) -> Identity:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        pass
    except msgspec.MsgspecError:
        path.unlink()  # a disk that was full, or another version
    made = Identity(deployment=f"pdctl-{secrets.token_hex(4)}", ping_key=secrets.token_hex(32))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(made))
    # Two that start at once must agree: the first one's stays.
    with suppress(FileExistsError):
        os.link(new, path)
    new.unlink()
    return msgspec.json.decode(path.read_bytes(), type=Identity)
