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
        refusal: why the compose file cannot start it; empty if it can: it has one prefill and one decode engine, or two combined ones.
    """

    topology: Topology
    label: str
    cells: int
    refusal: str
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
    whole = {**wanted, **given}
    return Planned(topology, deployment.label, cells, _not_in_compose(shape, deployment.label, whole), whole)


def in_compose(variables: Mapping[str, str]) -> dict[str, str]:
    """The same for the compose file, where the two engines' GPUs are PREFILL_GPU and DECODE_GPU, whatever their roles."""
    first, second = _gpus(variables)
    return {"PREFILL_GPU": first, "DECODE_GPU": second, **variables}


def _gpus(variables: Mapping[str, str]) -> list[str]:
    return [gpu for role in Role for gpu in variables.get(f"{role.upper()}_GPUS", "").split(",") if gpu]


def _not_in_compose(shape: tuple[int, ...], label: str, variables: Mapping[str, str]) -> str:
    if shape not in _COMPOSE or len(_gpus(variables)) != sum(shape[:2]):
        return f"the compose file has one prefill and one decode engine, or two combined ones, each with one GPU, and the plan is {label}: remove --containers, or use Helm with its values.yaml"
    own = variables.get("STEP_PROFILE", "")
    if Path(own).is_absolute():
        return f"the proxy's container cannot read {own}: remove --containers; or mount it there (docker-compose.yml, proxy), and set STEP_PROFILE to its path in the container"
    return ""


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
