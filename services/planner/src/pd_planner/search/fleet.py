"""Fleets of equal cells: how many cells a rate needs or a budget allows, and the fleet's results."""

import math
from dataclasses import dataclass
from typing import Final

from pd_contracts.names import Role
from pd_planner.des.power import watts_by_role
from pd_planner.search.candidates import LARGEST_CELL, Candidate
from pd_planner.search.capacity import SECONDS, Setting, percentiles, run, steady

_EXAMPLE_CELL: Final = 8  # of many plain engines this many are simulated


@dataclass(frozen=True)
class Fleet:
    """`cells` of a candidate, and requests per second that one cell carries within the limits."""

    candidate: Candidate
    cells: int
    carries: float

    @property
    def gpus(self) -> int:
        return self.cells * self.candidate.gpus

    @property
    def capacity(self) -> float:
        """Requests per second within the limits, in all."""
        return self.cells * self.carries

    @property
    def per_gpu(self) -> float:
        """Requests per second within the limits, per GPU."""
        return self.carries / self.candidate.gpus

    @property
    def label(self) -> str:
        """12 plain engines, 4 × 3P1D NIXL."""
        if self.candidate.plain:
            return Candidate(0, self.cells * self.candidate.others, None, self.candidate.tensor_parallel).label
        return self.candidate.label if self.cells == 1 else f"{self.cells:,} × {self.candidate.label}"


@dataclass(frozen=True)
class Operation:
    """The results of a fleet at a rate.

    Attributes:
        rate: requests per second, over the fleet; `within` is the share of requests within all limits.
        latencies: TTFT and TPOT p50 and p99, milliseconds, by name.
        watts: of all boards of each role; `joules` is per output token.
        preempted: share of requests whose KV was taken away for want of room, so that they were computed again.
    """

    rate: float
    within: float
    latencies: dict[str, float]
    watts: dict[Role, float]
    joules: float
    preempted: float = 0.0

    @property
    def total_watts(self) -> float:
        return sum(self.watts.values())


def needed(candidate: Candidate, carries: float, rate: float, headroom: float) -> Fleet | None:
    """The smallest fleet that serves a rate at no more than 1 − `headroom` of its capacity; None if its cells carry nothing.

    Plain engines come one by one; what is given must then be one engine's share.
    """
    usable = carries * (1 - headroom)
    return Fleet(candidate, max(1, math.ceil(rate / usable - 1e-9)), carries) if usable > 0 else None


def fitting(candidate: Candidate, carries: float, gpus: int) -> Fleet | None:
    """As many cells as fit into so many GPUs; None if not even one does."""
    cells = gpus // candidate.gpus
    return Fleet(candidate, cells, carries) if cells else None


def single(candidate: Candidate, carries: float) -> tuple[Candidate, float]:
    """A plain candidate as one engine with its share, because plain engines need not come in cells."""
    if not candidate.plain:
        return candidate, carries
    return Candidate(0, 1, None, candidate.tensor_parallel), carries / candidate.others


def operate(setting: Setting, fleet: Fleet, rate: float, least_s: float = SECONDS) -> Operation:
    """Simulate a fleet at a rate for `least_s` at least, by one of its cells; of many plain engines by some."""
    cell, cells = _example(fleet)
    outcome = run(setting, cell, rate / cells, least_s)
    seconds = float(outcome.last.max())
    counted = steady(outcome)
    drawn = watts_by_role(setting.profile.power, outcome, cell.prefills, seconds)
    boards = cell.tensor_parallel
    tokens = float(outcome.load.output.sum())
    return Operation(
        rate=rate,
        within=float(setting.limits.met(outcome)[counted].mean()),
        latencies=percentiles(outcome),
        watts={role: watts * boards * cells for role, watts in drawn.items()},
        joules=sum(drawn.values()) * boards * seconds / tokens,
        preempted=float((outcome.preempted > 0)[counted].mean()),
    )


def _example(fleet: Fleet) -> tuple[Candidate, float]:
    """What is simulated of a fleet, and how often the fleet has it."""
    if not fleet.candidate.plain:
        return fleet.candidate, fleet.cells
    engines = fleet.cells * fleet.candidate.others
    shown = min(engines, _EXAMPLE_CELL if engines > LARGEST_CELL else engines)
    return Candidate(0, shown, None, fleet.candidate.tensor_parallel), engines / shown
