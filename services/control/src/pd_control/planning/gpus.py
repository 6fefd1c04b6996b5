"""Which engine gets which GPUs."""

from collections.abc import Mapping, Sequence
from typing import Final

from pd_contracts.names import Role, Topology
from pd_control.settings import ControlSettings

ROLES: Final = {Topology.DISAGG: (Role.PREFILL, Role.DECODE), Topology.COMBINED: (Role.COMBINED,)}


class PlanError(ValueError):
    """The deployment is impossible; the message says which variable or option to change."""


def allocate(
    settings: ControlSettings, topology: Topology, counts: Mapping[Role, int | None]
) -> dict[Role, list[list[int]]]:
    """GPUs of every engine: the lists of the settings, or as many engines as `counts` asks for on consecutive GPUs.

    Combined engines without a list of their own take the GPUs of prefill and decode, so that both topologies have equally many.

    Raises:
        PlanError: if a list does not divide into engines, has a GPU twice, or contradicts a count.
    """
    listed = _listed(settings)
    explicit = {
        Role.PREFILL: settings.prefill_gpus,
        Role.DECODE: settings.decode_gpus,
        Role.COMBINED: settings.combined_gpus,
    }
    if any(counts.get(role) for role in ROLES[topology]):
        return _counted(settings, topology, counts, explicit)
    allocation = {role: _grouped(role, listed[role], settings.tensor_parallel_size) for role in ROLES[topology]}
    _refuse_doubles(allocation)
    return allocation


def gpus_of(settings: ControlSettings, role: Role) -> list[list[int]]:
    """GPUs of every engine of one role. Other roles are not checked, because they may be on another host.

    Raises:
        PlanError: if the list does not divide into engines.
    """
    return _grouped(role, _listed(settings)[role], settings.tensor_parallel_size)


def _listed(settings: ControlSettings) -> dict[Role, tuple[int, ...]]:
    prefill = settings.prefill_gpus or _first(settings.prefill_gpu, settings)
    decode = settings.decode_gpus or _first(settings.decode_gpu, settings)
    return {
        Role.PREFILL: prefill,
        Role.DECODE: decode,
        Role.COMBINED: settings.combined_gpus or (*prefill, *decode),
    }


def _first(gpu: int, settings: ControlSettings) -> tuple[int, ...]:
    return tuple(range(gpu * settings.tensor_parallel_size, (gpu + 1) * settings.tensor_parallel_size))


def _counted(
    settings: ControlSettings,
    topology: Topology,
    counts: Mapping[Role, int | None],
    explicit: Mapping[Role, Sequence[int]],
) -> dict[Role, list[list[int]]]:
    size, free = settings.tensor_parallel_size, 0
    allocation: dict[Role, list[list[int]]] = {}
    for role in ROLES[topology]:
        wanted = (counts.get(role) or 1) * size
        gpus = explicit[role] or range(free, free + wanted)
        if len(gpus) != wanted:
            msg = f"--{role} {wanted // size} needs {wanted} GPUs and {role.upper()}_GPUS lists {len(gpus)}: change one of them"
            raise PlanError(msg)
        allocation[role] = _grouped(role, gpus, size)
        free = max(free, *gpus) + 1
    _refuse_doubles(allocation)
    return allocation


def _grouped(role: Role, gpus: Sequence[int], size: int) -> list[list[int]]:
    if len(gpus) % size:
        msg = f"{role.upper()}_GPUS lists {len(gpus)} GPUs, which do not divide into engines of TENSOR_PARALLEL_SIZE={size}"
        raise PlanError(msg)
    return [list(gpus[start : start + size]) for start in range(0, len(gpus), size)]


def _refuse_doubles(allocation: Mapping[Role, Sequence[Sequence[int]]]) -> None:
    used: dict[int, str] = {}
    for role, engines in allocation.items():
        for number, gpus in enumerate(engines):
            for gpu in gpus:
                name = f"{role}-{number}"
                if gpu in used:
                    msg = f"GPU {gpu} is given to both {used[gpu]} and {name}: set PREFILL_GPUS and DECODE_GPUS separately"
                    raise PlanError(msg)
                used[gpu] = name
