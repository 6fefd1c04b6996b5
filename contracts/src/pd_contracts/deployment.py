"""The identity of a deployment: what an engine is told about it, and what the proxy's `GET /deployment` answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from pd_contracts.libraries import plain
from pd_contracts.names import Connector, Role, Topology
from pd_contracts.ports import Ports

# ROUTING with which the proxy's POLICY chooses engines: combined ones then serve as plain vLLM does.
STATIC_ROUTING: Final = "static"


class Member(Ports, frozen=True, kw_only=True):
    """What an engine, real or simulated, is told of the deployment that it belongs to."""

    deployment: Annotated[
        str, Meta(max_length=200, description="identity of the deployment; a proxy admits engines of its own only")
    ] = ""
    ping_key: Annotated[str, Meta(description="key that signs the deployment's pings; unsigned if empty")] = ""
    ping_key_file: Annotated[str, Meta(description="file that holds PING_KEY")] = ""
    engine_image: Annotated[str, Meta(description="container image of the engine, as records should name it")] = ""
    engine_gpus: Annotated[
        tuple[str, ...], Meta(description="UUIDs of the engine's GPUs; read from nvidia-smi if empty")
    ] = ()
    engine_gpu_model: Annotated[str, Meta(description="model of these GPUs; read from nvidia-smi if empty")] = ""

    @property
    def has_key(self) -> bool:
        return bool(self.ping_key or self.ping_key_file)

    def key(self) -> str:
        """The key of pings; empty if there is none.

        Raises:
            OSError: if the file cannot be read, or holds none.
        """
        return read_key(self.ping_key, self.ping_key_file)


def read_key(key: str, path: str) -> str:
    """A key that is given itself, or by a file; empty if neither is set.

    Raises:
        OSError: naming the variable, if the file cannot be read or holds none.
    """
    if key or not path:
        return key
    try:
        found = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"PING_KEY_FILE={path}: {plain(error)}"
        raise OSError(msg) from error
    if not found:
        msg = f"PING_KEY_FILE={path} holds no key"
        raise OSError(msg)
    return found


def shape_of(roles: Sequence[Role]) -> str:
    """How many of each role: "1P3D", "2C", "1P1D1C"."""
    return "".join(f"{roles.count(role)}{role[0].upper()}" for role in Role if role in roles)


def label_of(roles: Sequence[Role], manner: str = "") -> str:
    """The short name in tables and plots: "disagg 1P3D", "2 combined", "2 combined adaptive"; empty without engines."""
    if not roles:
        return ""
    plain = set(roles) == {Role.COMBINED}
    return with_manner(f"{len(roles)} combined" if plain else f"{Topology.DISAGG} {shape_of(roles)}", manner)


def with_manner(label: str, manner: str) -> str:
    """The label with what `manner_of` adds to it, unless it says so itself."""
    return label if not manner or label.endswith(manner) else f"{label} {manner}".strip()


def manner_of(*, routing: str, both_roles: bool) -> str:
    """What sets combined engines apart from plain ones: "adaptive", "both roles", "adaptive without KV_BOTH"; empty for plain engines.

    Args:
        routing: the proxy's ROUTING; empty if it is unknown.
        both_roles: whether the engines can also hand KV over (KV_BOTH=on).
    """
    if routing in ("", STATIC_ROUTING):
        return "both roles" if both_roles else ""
    return routing if both_roles else f"{routing} without KV_BOTH"


class DeployedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, as it described itself; unknown fields are empty.

    Attributes:
        name: the proxy's name for it, as in `/stats` and in `X-PD-Timing`.
        state: as in `/stats`.
        models: names that clients may use; the first is the base model's.
        gpus: UUIDs, as NVML writes them.
        versions: of torch, driver and connector, by name.
        transport: the way that KV takes, where the connector has several.
    """

    name: str
    role: Role
    state: str
    engine: str = ""
    version: str = ""
    versions: dict[str, str] = {}
    models: list[str] = []
    connector: Connector | None = None
    transport: str = ""
    image: str = ""
    gpus: list[str] = []
    gpu_model: str = ""


class DeploymentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /deployment` answers. Holds names, never addresses.

    Attributes:
        name: the deployment's identity; empty if nobody gave it one.
        shape: how many of each role: "1P3D", "2C", "1P1D1C".
        ready: what `GET /ready` answers.
        simulated: some engine is simulated, so no number says anything about a GPU.
        gpus: GPUs of all engines together, each counted once; None if an engine did not report its GPUs.
        proxy_version: the proxy's.
        settings: those of the proxy that decide how requests are served, by variable, where they are not the defaults.
    """

    name: str
    shape: str
    ready: bool
    simulated: bool
    gpus: int | None
    instances: list[DeployedEngine]
    proxy_version: str = ""
    settings: dict[str, str] = {}
