"""What a run's manifest is told about the deployment that served it."""

import platform
from collections.abc import Sequence

import msgspec

import pd_contracts
from pd_contracts.names import Role, Topology
from pd_contracts.records import Deployment, EngineInfo
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_control.planning.plan import Engine, Plan


def of_processes(planned: Plan, stats: ProxyStats | None) -> Deployment:
    """For local processes: GPUs by plan; versions and models are what the engines announced to the proxy."""
    engines = [EngineInfo(name=spec.name, role=spec.role, gpus=spec.gpus) for spec in planned.engines if spec.role]
    return Deployment(
        topology=planned.topology,
        label=label(planned.topology, planned.shape),
        gpus=planned.gpus,
        engines=announced(engines, stats),
        simulated=planned.engine is Engine.SIM,
        software=software(),
    )


def of_containers(
    topology: Topology, engines: Sequence[EngineInfo], stats: ProxyStats | None, docker_version: str
) -> Deployment:
    """For containers: images and digests too. An engine without a GPU counts as one, so that topologies compare."""
    roles = [engine.role for engine in engines]
    shape = "".join(f"{roles.count(role)}{role[0].upper()}" for role in (Role.PREFILL, Role.DECODE) if role in roles)
    return Deployment(
        topology=topology,
        label=label(topology, shape or f"{len(roles)} combined"),
        gpus=sum(len(engine.gpus) or 1 for engine in engines),
        engines=announced(engines, stats),
        software={**software(), "docker": docker_version},
    )


def label(topology: Topology, shape: str) -> str:
    """The short name in tables and plots: "disagg 1P1D", "2 combined"."""
    return f"{topology} {shape}" if topology is Topology.DISAGG else shape


def announced(engines: Sequence[EngineInfo], stats: ProxyStats | None) -> list[EngineInfo]:
    """Add what each engine told the proxy of itself.

    The proxy numbers by order of joining; engines of one role are alike, so the n-th of a role is as good as any other.
    """
    seen = list(stats.instances) if stats else []
    return [_told(engine, seen) for engine in engines]


def _told(engine: EngineInfo, seen: list[InstanceStats]) -> EngineInfo:
    known = next((instance for instance in seen if instance.role is engine.role), None)
    if known is None:
        return engine
    seen.remove(known)
    return msgspec.structs.replace(
        engine,
        engine=known.engine,
        version=engine.version or known.version,
        model=known.model,
        connector=known.connector,
    )


def software() -> dict[str, str]:
    """Versions of what measures."""
    return {"pdstack": pd_contracts.__version__, "python": platform.python_version()}
