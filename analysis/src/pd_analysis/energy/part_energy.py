"""The energy of a part of a run, such as one batch, with its error: one update of the counter at either end of the window."""

import math
from dataclasses import dataclass

from pd_analysis.energy.readings import Window
from pd_analysis.energy.window import edges_j, energy_of
from pd_analysis.records.run import Run


@dataclass(frozen=True)
class PartEnergy:
    """Joules of all serving boards over a part of a run, give or take `error_j`; `idle_j` is what they would have drawn idle."""

    joules: float
    error_j: float
    idle_j: float | None

    def plus(self, other: "PartEnergy") -> "PartEnergy":
        idle = None if self.idle_j is None or other.idle_j is None else self.idle_j + other.idle_j
        return PartEnergy(self.joules + other.joules, math.hypot(self.error_j, other.error_j), idle)


def energy_of_part(run: Run, window: Window) -> PartEnergy | None:
    """None without power, or if the readings are not plausible."""
    energy = energy_of(run, window)
    if energy is None or energy.total_j is None or energy.window_s <= 0:
        return None
    edges = [edges_j(gpu.mean_w or 0.0) for gpu in energy.serving]
    return PartEnergy(energy.total_j, math.hypot(*edges), energy.idle_j(energy.roles))
