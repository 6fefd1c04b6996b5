"""Are the recorded boards those of the deployment? By UUID where both sides have it, else by number; and by the work that they did."""

from collections.abc import Mapping, Sequence
from typing import Final

import pandas as pd

from pd_analysis.energy.checks import Check, Fault
from pd_analysis.energy.readings import Window
from pd_analysis.records.run import Run
from pd_contracts.names import Role
from pd_contracts.records import EngineInfo, GpuInfo

# Fewer requests than this may be too short for a board's utilization, which is a whole number of per cent.
TELLING_REQUESTS: Final = 10
# A board at work draws more above its idle power than this.
AT_REST: Final = 1.1


def astray(run: Run, serving: Mapping[int, Role]) -> int:
    """Boards of the deployment that were not recorded, or recorded ones with a role that are not its own; 0 too if that is unknown.

    A board recorded under two numbers counts once.
    """
    recorded = [gpu for gpu in run.gpu.gpus if gpu.index in serving] if run.gpu else []
    uuids = [gpu.uuid for gpu in recorded if gpu.uuid]
    if len(set(uuids)) < len(uuids):
        return len(uuids) - len(set(uuids))
    deployment = run.manifest.deployment
    engines = deployment.engines
    if engines and all(engine.gpu_uuids for engine in engines) and recorded and len(uuids) == len(recorded):
        return len({uuid for engine in engines for uuid in engine.gpu_uuids} ^ set(uuids))
    if engines and all(engine.gpus for engine in engines):
        return len({index for engine in engines for index in engine.gpus} ^ set(serving))
    return 0 if deployment.gpus is None else abs(deployment.gpus - len(serving))


def roles_apart(run: Run, serving: Mapping[int, Role]) -> int:
    """Boards that were recorded with another role than that of the engines that use them."""
    engines, boards = run.manifest.deployment.engines, run.gpu.gpus if run.gpu else []
    own = {gpu.index: {engine.role for engine in engines if _uses(engine, gpu)} for gpu in boards}
    return sum(bool(own.get(index)) and role not in own[index] for index, role in serving.items())


def _uses(engine: EngineInfo, gpu: GpuInfo) -> bool:
    if engine.gpu_uuids and gpu.uuid:
        return gpu.uuid in engine.gpu_uuids
    return gpu.index in engine.gpus


def worked(run: Run, window: Window) -> frozenset[Role]:
    """Roles all of whose engines answered requests in a window, enough of them for a board to show it."""
    rows = run.requests.rows
    inside = rows[(rows["sent"] <= window[1]) & (rows["last"] >= window[0])]
    if len(inside) < TELLING_REQUESTS:
        return frozenset()
    return frozenset(role for role in Role if _all_answered(run.manifest.deployment.engines, role, inside))


def _all_answered(engines: Sequence[EngineInfo], role: Role, rows: pd.DataFrame) -> bool:
    """Whether as many engines are named in answers as have the role; a single one need not be named."""
    own = sum(engine.role is role for engine in engines)
    names = rows["prefill_instance" if role is Role.PREFILL else "decode_instance"]
    return own == 1 or (own > 1 and names[names != ""].nunique() >= own)


def idle_fault(inside: pd.DataFrame, window: Window, idle_w: float | None) -> Fault | None:
    """A board that should have worked in a window, and by its utilization and its power did not."""
    used = inside["utilization"].dropna()
    power = inside["power_average_w"].fillna(inside["power_w"]).dropna()
    if used.empty or used.max() > 0:
        return None
    if idle_w is not None and not power.empty and power.mean() > idle_w * AT_REST:
        return None
    return Fault(Check.IDLE, window[1] - window[0])
