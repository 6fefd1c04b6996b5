"""The highest load that a deployment serves within the objectives, by bisection."""

# ruff: noqa: INP001  a part of a script

from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

from cases import Case
from world import Policy, Result, simulate

from pd_routing.view import Objectives

WARM_UP_S: Final = 8.0
LEAST_S: Final = 20.0
ATTAINED: Final = 0.9


@dataclass(frozen=True)
class Setup:
    """A deployment, and its load.

    Attributes:
        seconds: the longest load; it is shorter if it would have more than `requests`, but never shorter than LEAST_S.
        cv: coefficient of variation of the gaps between requests.
        close: how close a capacity is looked for.
    """

    engines: int
    policy: Policy
    seed: int
    seconds: float = 90.0
    requests: int = 100_000
    cv: float = 1.0
    close: float = 1.015


@dataclass(frozen=True)
class Served:
    """Shares of the requests that came after the warm-up."""

    good: float
    rejected: float
    handed_over: float


def served(case: Case, setup: Setup, rate: float) -> Served:
    """What becomes of so many requests per second per engine."""
    result = outcome(case, setup, rate)
    counted = result.load.at >= WARM_UP_S
    good = result.good(Objectives(case.ttft, case.tpot))[counted]
    return Served(float(good.mean()), float(result.rejected[counted].mean()), result.handed_over / len(result.load))


def outcome(case: Case, setup: Setup, rate: float) -> Result:
    """What comes of so many requests per second per engine, one by one."""
    every_s = rate * setup.engines
    most = setup.seconds if case.drift else min(setup.seconds, max(LEAST_S, setup.requests / every_s))
    seconds = case.lasts or most
    load = case.load(every_s, seconds, setup.seed, setup.cv)
    return simulate(setup.engines, load, Objectives(case.ttft, case.tpot), setup.policy)


def capacity(case: Case, setup: Setup, guess: float) -> float:
    """Requests per second and engine at which nine in ten are served in time; `guess` is where to begin."""
    low, high, rate = 0.0, inf, max(guess, 0.1)
    while low == 0 or high / low > setup.close:
        if served(case, setup, rate).good >= ATTAINED:
            low = rate
            rate = rate * 1.2 if high == inf else sqrt(low * high)
        else:
            high = rate
            rate = rate / 1.3 if low == 0 else sqrt(low * high)
        if high < 0.02:
            return 0.0
    return low


def best_static(case: Case, setups: dict[int, Setup], guess: float) -> tuple[int, float]:
    """Which split has the highest capacity, and what it is; a split that fails a little above the best so far is not looked at closer."""
    best, most = 0, 0.0
    for prefills, setup in setups.items():
        if most and served(case, setup, most * setup.close).good < ATTAINED:
            continue
        found = capacity(case, setup, max(most, guess))
        if found > most:
            best, most = prefills, found
    return best, most
