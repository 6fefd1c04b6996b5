"""What serves the load: what pdctl wrote into a file, what the proxy says, and what was given by hand, in this order of trust."""

from pathlib import Path
from typing import Final

import msgspec

from pd_contracts.names import SIMULATED_ENGINE, Role, Topology
from pd_contracts.records import Deployment, EngineInfo
from pd_contracts.stats import ProxyStats

# Engines in these states take part in the run; a lost one does not.
_SERVING: Final = frozenset({"ready", "suspect"})


class DeploymentError(ValueError):
    """The deployment file cannot be used; the message is one sentence."""


def read(path: Path) -> Deployment:
    """Read a deployment file.

    Raises:
        DeploymentError: if it cannot be read or is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Deployment)
    except OSError as error:
        msg = f"{path}: {error.strerror}"
    except msgspec.MsgspecError as error:
        msg = f"{path} describes no deployment: {error}"
    raise DeploymentError(msg)


def describe(file: Deployment | None, stats: ProxyStats | None, *, label: str, simulated: bool) -> Deployment:
    """Put together what is known; what nobody said stays empty, and one voice for "simulated" is enough."""
    base = file or Deployment()
    engines = base.engines or (_engines(stats) if stats else [])
    software = {**({"pd-proxy": stats.version} if stats and stats.version else {}), **base.software}
    return msgspec.structs.replace(
        base,
        topology=base.topology or _topology(engines),
        label=label or base.label,
        engines=engines,
        simulated=base.simulated or simulated or _simulated(engines, stats),
        software=software,
    )


def gpu_roles(deployment: Deployment) -> dict[str, str]:
    """Role by GPU index, as the monitor takes it; empty if no engine's GPUs are known."""
    return {str(gpu): str(engine.role) for engine in deployment.engines for gpu in engine.gpus}


def _engines(stats: ProxyStats) -> list[EngineInfo]:
    return [
        EngineInfo(
            name=instance.name,
            role=instance.role,
            engine=instance.engine,
            version=instance.version,
            model=instance.model,
            connector=instance.connector,
        )
        for instance in stats.instances
        if instance.state in _SERVING
    ]


def _topology(engines: list[EngineInfo]) -> Topology | None:
    roles = {engine.role for engine in engines}
    if roles == {Role.PREFILL, Role.DECODE}:
        return Topology.DISAGG
    return Topology.COMBINED if roles == {Role.COMBINED} else None


def _simulated(engines: list[EngineInfo], stats: ProxyStats | None) -> bool:
    names = {engine.engine for engine in engines} | {instance.engine for instance in (stats.instances if stats else [])}
    return SIMULATED_ENGINE in names
