"""The power of boards, from how long their engines computed prompts and decoded."""

from typing import Final

import numpy as np

from pd_contracts.names import Role
from pd_planner.des.deployment import Outcome
from pd_planner.des.model import BATCH, DECODES, PROMPTS, Floats
from pd_simulator.profile import Power

# Shares of a second in which an engine computes prompts and decodes, and the latter times its batch.
SHARES: Final = (PROMPTS, DECODES, BATCH)


def shares(busy: Floats, seconds: float) -> Floats:
    """Rows of `Outcome.busy` as shares of a time: prompts, decodes, decodes times the batch."""
    return np.asarray(busy[:, SHARES] / (1e3 * seconds), np.float64)


def watts(power: Power, role: Role, share: Floats) -> Floats:
    """Mean power of boards of one role, one row of `share` each; the board keeps its average below its limit."""
    draw = power.of(role)
    drawn = draw.idle_w + share @ np.array([draw.prefill_w, draw.decode_w, draw.per_sequence_w])
    return np.asarray(np.minimum(drawn, power.limit_w), np.float64)


def watts_by_role(power: Power, outcome: Outcome, prefills: int, seconds: float) -> dict[Role, float]:
    """Watts of all boards of each role together, over `seconds` in which the load ran."""
    share = shares(outcome.busy, seconds)
    if not prefills:
        return {Role.COMBINED: float(watts(power, Role.COMBINED, share).sum())}
    return {
        Role.PREFILL: float(watts(power, Role.PREFILL, share[:prefills]).sum()),
        Role.DECODE: float(watts(power, Role.DECODE, share[prefills:]).sum()),
    }
