"""The deployment that serves the load, as the proxy describes it or as options describe it for other servers. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from pd_contracts.deployment import DeployedEngine, DeploymentDocument, label_of
from pd_contracts.names import SIMULATED_ENGINE, Role, Topology
from pd_contracts.records import Deployment, EngineInfo
from pd_contracts.stats import InstanceStats, ProxyStats

# Engines in these states take part in the run; a lost one does not.
_SERVING: Final = frozenset({"ready", "suspect"})


def describe(
    document: DeploymentDocument | None,
    stats: ProxyStats | None,
    *,
    boards: Mapping[str, int],
    label: str,
    gpus: int | None,
    simulated: bool,
) -> Deployment:
    """Combine what is known. What is unknown stays empty, and one source that says "simulated" is enough.

    Args:
        document: of our proxy.
        stats: of our proxy; they name the engines where these do not announce themselves.
        boards: numbers of the monitor's GPUs by UUID.
        label, gpus: options, which take precedence over what is announced.
        simulated: whether the server itself says so.
    """
    told = [_told(engine, boards) for engine in document.instances if engine.state in _SERVING] if document else []
    engines = told or [_seen(instance) for instance in (stats.instances if stats else []) if instance.state in _SERVING]
    roles = [engine.role for engine in engines]
    named = {engine.engine for engine in engines} | {instance.engine for instance in (stats.instances if stats else [])}
    version = stats.version if stats else ""
    described = Deployment(
        name=document.name if document else "",
        topology=_topology(roles),
        gpus=gpus or (document.gpus if document else None),
        engines=engines,
        simulated=simulated or SIMULATED_ENGINE in named or (document is not None and document.simulated),
        software={**_software(engines), **({"pd-proxy": version} if version else {})},
        settings=document.settings if document else {},
    )
    return msgspec.structs.replace(described, label=label or label_of(roles, described.manner))


def gpu_roles(deployment: Deployment) -> dict[str, str]:
    """Role by GPU index, as the monitor takes it; empty if no engine's GPUs are known."""
    return {str(gpu): str(engine.role) for engine in deployment.engines for gpu in engine.gpus}


def _told(engine: DeployedEngine, boards: Mapping[str, int]) -> EngineInfo:
    return EngineInfo(
        name=engine.name,
        role=engine.role,
        engine=engine.engine,
        version=engine.version,
        versions=engine.versions,
        model=next(iter(engine.models), ""),
        connector=engine.connector,
        transport=engine.transport,
        image=engine.image,
        gpus=[boards[uuid] for uuid in engine.gpus if uuid in boards],
        gpu_uuids=engine.gpus,
        gpu_model=engine.gpu_model,
    )


def _seen(instance: InstanceStats) -> EngineInfo:
    return EngineInfo(
        name=instance.name,
        role=instance.role,
        engine=instance.engine,
        version=instance.version,
        model=instance.model,
        connector=instance.connector,
    )


def _software(engines: Sequence[EngineInfo]) -> dict[str, str]:
    """Versions that the engines reported; where they differ, all of them."""
    found: dict[str, list[str]] = {}
    for engine in engines:
        for name, version in {engine.engine: engine.version, **engine.versions}.items():
            if name and version and version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def _topology(roles: Sequence[Role]) -> Topology | None:
    if set(roles) == {Role.PREFILL, Role.DECODE}:
        return Topology.DISAGG
    return Topology.COMBINED if set(roles) == {Role.COMBINED} else None
