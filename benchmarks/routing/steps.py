"""A load that steps up above the capacity, while engines are at work, and down again."""

# ruff: noqa: INP001  a part of a script

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from capacity import ATTAINED, WARM_UP_S, Setup
from cases import Case, arrivals
from world import Result, simulate

from pd_planner.traffic.load import Floats, Load
from pd_routing.view import Objectives

# Each level lasts for two turns of the drifting traffics, and for longer than almost all answers.
LEVEL_S: Final = 30.0
BEFORE: Final = 0.85
AFTER: Final = 0.8
# Requests are in time again when they are for so long.
AGAIN_S: Final = 5.0


@dataclass(frozen=True)
class Stepped:
    """What became of a load at three levels, each a share of the capacity.

    Attributes:
        kept: requests served in time during overload, as a share of the capacity.
        rejected_before, rejected_after: shares of the requests at the levels below the capacity; `before` without the warm-up.
        again_s: how long after the overload it took until nine in ten requests of some seconds were in time.
    """

    kept: float
    rejected_before: float
    rejected_after: float
    again_s: float


def levels(case: Case, setup: Setup, rate: float, shares: Sequence[float]) -> Load:
    """Requests at these shares of a rate per engine, one after another."""
    parts = []
    for number, share in enumerate(shares):
        random = np.random.default_rng((setup.seed, number))
        at = arrivals(random, share * rate * setup.engines, LEVEL_S, setup.cv)
        parts.append(case.drawn(random, number * LEVEL_S + at))
    columns = zip(*((part.at, part.prompt, part.output) for part in parts), strict=True)
    return Load.of(*map(np.concatenate, columns))


def stepped(case: Case, setup: Setup, rate: float, factor: float) -> Stepped:
    """What becomes of a step to `factor` times this rate per engine."""
    objectives = Objectives(case.ttft, case.tpot)
    result = simulate(setup.engines, levels(case, setup, rate, (BEFORE, factor, AFTER)), objectives, setup.policy)
    return _read(result, result.good(objectives), rate * setup.engines)


def _read(result: Result, good: np.ndarray, capacity: float) -> Stepped:
    at, rejected = result.load.at, result.rejected
    first, second, third = ((at >= n * LEVEL_S) & (at < (n + 1) * LEVEL_S) for n in range(3))
    return Stepped(
        kept=float(good[second].sum() / (capacity * LEVEL_S)),
        rejected_before=float(rejected[first & (at >= WARM_UP_S)].mean()),
        rejected_after=float(rejected[third].mean()),
        again_s=_again(at[third] - 2 * LEVEL_S, good[third]),
    )


def _again(at: Floats, good: np.ndarray) -> float:
    """The first whole second from which nine in ten of some seconds are in time; infinite if there is none."""
    for second in range(int(LEVEL_S - AGAIN_S) + 1):
        within = good[(at >= second) & (at < second + AGAIN_S)]
        if len(within) and within.mean() >= ATTAINED:
            return float(second)
    return float("inf")
