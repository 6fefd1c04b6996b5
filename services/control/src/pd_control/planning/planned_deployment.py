"""A deployment as `pd-plan` wrote it into plan.json: which engines, and the variables that start them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pd_contracts.names import Role, Topology
from pd_control.planning.gpus import PlanError

# Prefill and other engines, and GPUs per engine.
_COMPOSE: Final = ((1, 1, 1), (0, 2, 1))


@dataclass(frozen=True)
class Planned:
    """A plan's deployment on one host.

    Attributes:
        variables: those of the plan, with the caller's own in their place.
        cells: how many such cells the whole fleet has; each is started on a host of its own, or on other GPUs and ports.
        fits_compose: the compose file has as many engines: one prefill and one decode, or two plain ones.
    """

    topology: Topology
    label: str
    cells: int
    fits_compose: bool
    variables: Mapping[str, str]


def read(path: Path, own: Mapping[str, str]) -> Planned:
    """Read a plan; `own` are the caller's variables, which win: PREFILL_GPUS=4,5,6 puts a plan's three prefill engines on other GPUs.

    Raises:
        PlanError: if the file is not a plan, or the caller's variables contradict it.
    """
    from pd_planner.emit.deploy import variables  # noqa: PLC0415 - the planner takes half a second that other commands need not wait for
    from pd_planner.emit.plan_file import PlanFileError, read_plan  # noqa: PLC0415

    try:
        plan = read_plan(path)
    except PlanFileError as error:
        raise PlanError(str(error)) from error
    wanted = variables(plan, path.parent)
    for name in sorted(wanted):
        _refuse_contradiction(name, wanted[name], own.get(name) or wanted[name], plan.best.deployment.label)
    given = {name: value for name, value in own.items() if value}
    deployment = plan.best.deployment
    topology = Topology.DISAGG if deployment.prefills else Topology.COMBINED
    cells = deployment.cells if deployment.in_cells else 1
    shape = (deployment.prefills, deployment.others * (deployment.cells // cells), deployment.tensor_parallel)
    fits = shape in _COMPOSE and not deployment.adaptive
    return Planned(topology, deployment.label, cells, fits, {**wanted, **given})


def _refuse_contradiction(name: str, planned: str, own: str, label: str) -> None:
    """Refuse variables that contradict the plan. Ports may differ, and GPUs may be others of the same number (for plain engines, fewer)."""
    if name.endswith("_PORT"):
        return
    if name.endswith("_GPUS"):
        wanted, given = len(planned.split(",")), len(own.split(","))
        if given == wanted or (name == f"{Role.COMBINED.upper()}_GPUS" and given < wanted):
            return
        msg = f"{name} lists {given} GPUs, and the plan ({label}) has {wanted}: name as many, or unset it"
        raise PlanError(msg)
    if own != planned:
        msg = f"{name} is {own} in the environment and {planned} in the plan ({label}): unset it, or plan again with it"
        raise PlanError(msg)
