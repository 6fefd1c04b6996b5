# ruff: noqa: INP001 - scripts, not a package
"""What is measured, read from a TOML file; see h200-x4.toml."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pd_contracts.names import Connector, Role, Topology
from pd_contracts.records import Deployment, EngineInfo


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One engine on one GPU; several share a GPU, and only those of the topology in turn get requests. `batched` is KV_BATCHED."""

    role: Role
    instance: int
    gpu: int
    connector: Connector | None = None
    batched: bool = False
    kv_cache_bytes: int

    @property
    def name(self) -> str:
        """As in the logs: "prefill-0"."""
        return f"{self.role}-{self.instance}"

    @property
    def address(self) -> str:
        """An address of its own, by which a proxy believes this engine's pings and no other's."""
        return f"127.0.{1 + list(Role).index(self.role)}.{1 + self.instance}"


class TopologyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Engines that serve together, by name."""

    label: str
    engines: list[str]


class ShapePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A workload at several rates, requests a second and GPU, each for so many seconds."""

    input_tokens: int
    output_tokens: int
    goodput: str
    rates_per_gpu: list[float]
    seconds: list[float]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    topology: str
    shape: ShapePlan
    rate_per_gpu: float
    seconds: float
    seed: int

    @property
    def folder(self) -> str:
        """Where its records lie, below the output folder."""
        size = f"{self.shape.input_tokens}-{self.shape.output_tokens}"
        return f"{self.topology}/{size}/rate-{self.rate_per_gpu:g}-seed-{self.seed}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; `phases` come one after the other, the lanes of a phase run side by side, the topologies of a lane in turn."""

    engines: list[EnginePlan]
    topologies: dict[str, TopologyPlan]
    shapes: list[ShapePlan]
    phases: list[list[list[str]]]
    seeds: list[int]

    def part(self, topologies: list[str], seeds: list[int]) -> "Plan":
        """The same with these topologies and seeds alone; all of them where a list is empty."""
        phases = [
            [[name for name in lane if name in (topologies or [name])] for lane in phase] for phase in self.phases
        ]
        return msgspec.structs.replace(self, phases=phases, seeds=seeds or self.seeds)

    def members(self, topology: str) -> list[EnginePlan]:
        """The engines of a topology."""
        names = self.topologies[topology].engines
        return [next(engine for engine in self.engines if engine.name == name) for name in names]

    def gpus(self, topology: str) -> int:
        """How many GPUs a topology uses."""
        return len({engine.gpu for engine in self.members(topology)})

    def points(self, topology: str, seed: int) -> Iterator[Point]:
        """The runs of a topology in their order."""
        for shape in self.shapes:
            for rate, seconds in zip(shape.rates_per_gpu, shape.seconds, strict=True):
                yield Point(topology=topology, shape=shape, rate_per_gpu=rate, seconds=seconds, seed=seed)

    def deployment(self, topology: str, *, simulated: bool, software: dict[str, str], model: str) -> Deployment:
        """What the run's manifest says of who served."""
        members = self.members(topology)
        separate = any(engine.role is Role.PREFILL for engine in members)
        return Deployment(
            topology=Topology.DISAGG if separate else Topology.COMBINED,
            label=self.topologies[topology].label,
            gpus=self.gpus(topology),
            engines=[
                EngineInfo(
                    name=engine.name,
                    role=engine.role,
                    engine="" if simulated else "vllm",
                    version=software.get("vllm", ""),
                    model=model,
                    connector=engine.connector,
                    gpus=[engine.gpu],
                )
                for engine in members
            ],
            simulated=simulated,
            software=software,
        )


def read(path: Path) -> Plan:
    """Read a plan.

    Raises:
        SystemExit: with a sentence, if it is none.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Plan)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        msg = f"{path}: {error}"
        raise SystemExit(msg) from error
