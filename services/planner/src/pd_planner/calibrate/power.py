"""The power of the boards of each role, from the energy of runs and how busy their engines were."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from pd_contracts.names import Role
from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.regression import regress
from pd_planner.des.deployment import simulate
from pd_planner.des.power import shares
from pd_planner.traffic.load import Floats
from pd_simulator.profile import Draw, Power, Profile

_FEWEST_RUNS: Final = 2
_IDLE_DOUBT_W: Final = 3.0
_DOUBT_W: Final = (400.0, 300.0, 5.0)  # of what prompts, decodes and a sequence add
# If the mean is this near to the power limit, the board lowered its clocks, so its power says little about the load.
_LIMITED: Final = 0.97
_ADDED: Final = ("prefill_w", "decode_w", "per_sequence_w")


def fit_power(profile: Profile, runs: Sequence[Measured]) -> Profile:
    """The profile with the power of every role that enough runs recorded."""
    limits = [run.limit_w for run in runs if run.limit_w]
    power = msgspec.structs.replace(profile.power, limit_w=float(np.median(limits))) if limits else profile.power
    rows = {role: list(_rows(profile, runs, role)) for role in Role}
    for role, found in rows.items():
        if len(found) >= _FEWEST_RUNS:
            idle = [run.idle_w[role] for run in runs if role in run.idle_w]
            power = msgspec.structs.replace(power, **{role.value: _draw(power, role, found, idle)})
    return msgspec.structs.replace(profile, power=power)


def _rows(profile: Profile, runs: Sequence[Measured], role: Role) -> Iterator[tuple[float, Floats]]:
    """Mean watts of a board of this role and its mean shares, one entry per run."""
    for run in runs:
        if role not in run.watts:
            continue
        busy = simulate(profile, run.engines, run.load, run.route).busy
        own = busy[: run.engines.prefills] if role is Role.PREFILL else busy[run.engines.prefills :]
        yield run.watts[role], shares(own, run.window_s).mean(axis=0)


def _draw(power: Power, role: Role, rows: Sequence[tuple[float, Floats]], idle: Sequence[float]) -> Draw:
    """Idle power as it was read, if it was; numbers for work that a role never did stay those of the profile."""
    known = power.of(role)
    free = [row for row in rows if row[0] < _LIMITED * power.limit_w] or list(rows)
    share = np.array([each for _, each in free])
    does = share.max(axis=0) > 0
    prior = np.array([float(np.median(idle)) if idle else known.idle_w, *(getattr(known, name) for name in _ADDED)])
    doubt = np.array([_IDLE_DOUBT_W if idle else prior[0] / 2, *_DOUBT_W])
    columns = np.column_stack([np.ones(len(free)), share * does])
    fitted = regress(columns, np.array([watt for watt, _ in free]), prior, doubt).values
    return Draw(float(fitted[0]), *(max(0.0, float(value)) for value in fitted[1:]))
