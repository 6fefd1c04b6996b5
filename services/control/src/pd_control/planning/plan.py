"""From topology, counts and settings to the list of processes to run. No I/O."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

import pd_connector
import pd_contracts
import pd_engine
from pd_contracts.names import Role, Topology
from pd_contracts.ports import KV_PORT_STEP
from pd_control.planning.gpus import ROLES, PlanError, allocate, gpus_of
from pd_control.settings import ControlSettings


class Engine(StrEnum):
    """What serves as an engine."""

    SIM = "sim"
    VLLM = "vllm"


class Listen(msgspec.Struct, frozen=True):
    """A port that a process opens, and the variable that moves it."""

    port: int
    variable: str


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process.

    Attributes:
        env: added to the environment in force; an empty value means unset, as everywhere in pdstack.
        listens: ports that it opens; the first is its HTTP port.
        python_path: folders put in front of PYTHONPATH, for an interpreter in which pdstack is not installed.
    """

    name: str
    argv: list[str]
    env: dict[str, str]
    listens: list[Listen]
    role: Role | None = None
    gpus: list[int] = msgspec.field(default_factory=list)
    python_path: list[str] = msgspec.field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listens[0].port


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as processes, in no particular order: they start together and find each other through the proxy."""

    topology: Topology
    engine: Engine
    processes: list[ProcessSpec]
    settings: ControlSettings

    @property
    def engines(self) -> list[ProcessSpec]:
        return [process for process in self.processes if process.role is not None]

    @property
    def gpus(self) -> int:
        """Number of GPUs in use, real or simulated; numbers per GPU are divided by it."""
        return sum(len(process.gpus) for process in self.engines)

    @property
    def expected(self) -> dict[Role, int]:
        """How many engines of each role must join."""
        roles = [process.role for process in self.engines]
        return {role: roles.count(role) for role in ROLES[self.topology]}

    @property
    def shape(self) -> str:
        """The shape's name: "1P1D", "2 combined"."""
        counts = self.expected
        if self.topology is Topology.COMBINED:
            return f"{counts[Role.COMBINED]} combined"
        return f"{counts[Role.PREFILL]}P{counts[Role.DECODE]}D"


def label(topology: Topology, shape: str) -> str:
    """The short name in tables and plots: "disagg 1P1D", "2 combined"."""
    return f"{topology} {shape}" if topology is Topology.DISAGG else shape


def plan(
    settings: ControlSettings,
    topology: Topology,
    engine: Engine,
    counts: Mapping[Role, int | None] | None = None,
) -> Plan:
    """Decide what runs.

    Raises:
        PlanError: for impossible GPUs or ports.
    """
    allocation = allocate(settings, topology, counts or {})
    try:
        engines = [
            _engine(settings, engine, role, number, gpus)
            for role, groups in allocation.items()
            for number, gpus in enumerate(groups)
        ]
    except ValueError as error:  # a port counted up beyond the last one
        raise PlanError(str(error)) from error
    processes = [proxy_spec(settings), *engines, _monitor(settings, engine, engines)]
    _refuse_shared_ports(processes)
    return Plan(topology=topology, engine=engine, processes=processes, settings=settings)


def planned_by(settings: ControlSettings, options: argparse.Namespace) -> Plan:
    """The plan that topology, engine and counts of a command line ask for.

    Raises:
        PlanError: for impossible GPUs, ports or counts.
    """
    counts = {role: getattr(options, role) for role in Role}
    topology = topology_of(settings, options)
    unused = [role for role, count in counts.items() if count and role not in ROLES[topology]]
    if unused:
        msg = f"--{unused[0]} does not belong to topology {topology}: remove it, or choose the topology that has these engines"
        raise PlanError(msg)
    return plan(settings, topology, Engine(options.engine), counts)


def topology_of(settings: ControlSettings, options: argparse.Namespace) -> Topology:
    """The topology that was given, or combined if only combined engines are asked for, by options before settings; else disagg."""
    if options.topology is not None:
        return Topology(options.topology)
    listed = {
        Role.PREFILL: settings.prefill_gpus,
        Role.DECODE: settings.decode_gpus,
        Role.COMBINED: settings.combined_gpus,
    }
    named = {role for role in Role if getattr(options, role)} or {role for role, gpus in listed.items() if gpus}
    return Topology.COMBINED if named == {Role.COMBINED} else Topology.DISAGG


def plan_one(settings: ControlSettings, engine: Engine, role: Role, number: int) -> ProcessSpec:
    """Decide how a single engine runs, on the GPUs of its role.

    Raises:
        PlanError: for impossible GPUs or ports.
    """
    groups = gpus_of(settings, role)
    if number >= len(groups):
        room = f"is enough for {len(groups)} engine{'s' * (len(groups) > 1)}, counted from 0"
        msg = f"{role}-{number} has no GPU: {role.upper()}_GPUS {room}"
        raise PlanError(msg)
    try:
        return _engine(settings, engine, role, number, groups[number])
    except ValueError as error:  # a port counted up beyond the last one
        raise PlanError(str(error)) from error


def _refuse_shared_ports(processes: Sequence[ProcessSpec]) -> None:
    used: dict[int, tuple[str, str]] = {}
    for process in processes:
        for listen in process.listens:
            if listen.port in used:
                name, variable = used[listen.port]
                both = f"both {name} ({variable}) and {process.name} ({listen.variable})"
                msg = f"port {listen.port} would be used by {both}: give one of them another base port"
                raise PlanError(msg)
            used[listen.port] = (process.name, listen.variable)


def _common(settings: ControlSettings) -> dict[str, str]:
    return {
        "HTTP_PROXY_PORT": str(settings.http_proxy_port),
        "PROXY_PORT": str(settings.proxy_port),
        "PROXY_HOST": settings.proxy_host,
        "MONITOR_PORT": str(settings.monitor_port),
        "BIND_HOST": settings.bind_host,
        "KV_CONNECTOR": settings.kv_connector.value,
        "KV_BOTH": "on" if settings.kv_both else "off",
        **{name.upper(): str(getattr(settings, name)) for name in BASES},
    }


def proxy_spec(settings: ControlSettings) -> ProcessSpec:
    """The proxy, which is the same for every deployment."""
    listens = [Listen(settings.http_proxy_port, "HTTP_PROXY_PORT"), Listen(settings.proxy_port, "PROXY_PORT")]
    # MODEL is left out: all engines of a plan serve the same model, and under their own name for it (SERVED_MODEL_NAME) they would be refused.
    env = {**_common(settings), "MODEL": "", "DISCOVERY_HOST": settings.heard_on}
    return ProcessSpec(name="proxy", argv=_module("pd_proxy"), env=env, listens=listens)


def _engine(settings: ControlSettings, engine: Engine, role: Role, number: int, gpus: list[int]) -> ProcessSpec:
    listens = [Listen(settings.http(role, number), f"{role.upper()}_HTTP_PORT")]
    if role is not Role.COMBINED or settings.kv_both:
        port = settings.kv(role, number, both=settings.kv_both)
        listens.append(Listen(port, f"{role.upper()}_KV_PORT"))
    env = {
        **_common(settings),
        "PD_ROLE": role.value,
        "INSTANCE": str(number),
        "VLLM_HOST_IP": settings.announced_address,
        **({"MODEL": settings.model} if settings.model else {}),
    }
    spec = ProcessSpec(
        name=f"{role}-{number}", role=role, argv=_module("pd_simulator"), env=env, listens=listens, gpus=gpus
    )
    if engine is Engine.SIM:
        return msgspec.structs.replace(spec, env={**env, "SIM_GPU": str(gpus[0])})
    return msgspec.structs.replace(
        spec,
        argv=[settings.engine_python, "-m", "pd_engine"],
        # The order of the monitor and nvidia-smi; CUDA's default order is fastest first.
        env={**env, "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        python_path=[
            str(Path(package.__file__ or "").parents[1]) for package in (pd_contracts, pd_engine, pd_connector)
        ],
    )


def _monitor(settings: ControlSettings, engine: Engine, engines: Sequence[ProcessSpec]) -> ProcessSpec:
    # Only the lists of this plan count; PREFILL_GPU and DECODE_GPU would contradict those of a combined plan.
    env = {**_common(settings), "PREFILL_GPU": "", "DECODE_GPU": ""}
    for role in Role:
        gpus = [gpu for process in engines if process.role is role for gpu in process.gpus]
        env[f"{role.upper()}_GPUS"] = ",".join(map(str, gpus))
    env["ENGINE_METRICS"] = ",".join(f"{process.role}=http://127.0.0.1:{process.port}/metrics" for process in engines)
    if engine is Engine.SIM:
        env["MONITOR_BACKEND"] = "simulated"
        env["SIM_BOARDS"] = ",".join(f"http://127.0.0.1:{process.port}/sim/board" for process in engines)
    listens = [Listen(settings.monitor_port, "MONITOR_PORT")]
    return ProcessSpec(name="monitor", argv=_module("pd_monitor"), env=env, listens=listens)


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


# Base port fields and the distance between the ports of two engines.
BASES: Final = {
    "prefill_http_port": 1,
    "decode_http_port": 1,
    "combined_http_port": 1,
    "prefill_kv_port": KV_PORT_STEP,
    "decode_kv_port": KV_PORT_STEP,
    "combined_kv_port": KV_PORT_STEP,
}


def port_needs(planned: Plan) -> Iterator[tuple[str, list[int]]]:
    """Every settings field that names ports of this plan, with the ports it leads to."""
    needs: dict[str, list[int]] = {}
    for process in planned.processes:
        for listen in process.listens:
            needs.setdefault(listen.variable.lower(), []).append(listen.port)
    yield from needs.items()
