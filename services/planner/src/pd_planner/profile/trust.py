"""How far a profile can be trusted for a deployment: how well its runs were predicted, and whether any of them was similar."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pd_analysis.words.language import mark
from pd_contracts.names import Connector
from pd_simulator.profile import HeldOut, Profile

# Standard deviations of the logarithm of a capacity. Nine of ten lie within 1.64 of them: ±25% and ±40%.
ANALYTIC_SD: Final = 0.15
UNCALIBRATED_SD: Final = 0.22
LEAST_SD: Final = 0.03
# Where a profile does not say how well it predicted capacities.
UNTOLD_SD: Final = 0.1
# A median of absolute errors is this share of a standard deviation, if errors are normal.
_MEDIAN_OF_SD: Final = 0.6745


class Trust(StrEnum):
    """What a deployment's numbers rest on: measurements of similar deployments, of others, or a data sheet."""

    CALIBRATED = "calibrated"
    UNCALIBRATED = "UNCALIBRATED TOPOLOGY"
    ANALYTIC = "ANALYTIC"
    UNKNOWN = "UNKNOWN ORIGIN"

    @property
    def short(self) -> str:
        """A word for tables; `tr` translates it."""
        return _SHORT[self]


_SHORT: Final = {
    Trust.CALIBRATED: mark("calibrated"),
    Trust.UNCALIBRATED: mark("untried"),
    Trust.ANALYTIC: mark("analytic"),
    Trust.UNKNOWN: mark("unknown"),
}


@dataclass(frozen=True)
class Shape:
    """The properties of a deployment that matter for trust: how many engines hand over to how many, by which connector, and whether roles are adaptive."""

    prefills: int
    others: int
    connector: Connector | None
    batched: bool = False
    adaptive: bool = False

    def covered_by(self, known: HeldOut) -> bool:
        """Whether runs of this kind had as many senders and receivers; plain engines do not know of each other."""
        if self.adaptive or (self.connector, self.batched) != (known.connector, known.batched):
            return False  # no run with adaptive roles was held out
        if self.connector is None:
            return known.prefills == 0
        return self.prefills <= known.prefills and self.others <= known.others


def trust(profile: Profile, shape: Shape) -> tuple[Trust, float]:
    """How much is known, and the standard deviation of the logarithm of what is predicted for its capacity."""
    found = profile.provenance
    if found is None:
        return Trust.UNKNOWN, ANALYTIC_SD
    if found.kind == "analytic":
        return Trust.ANALYTIC, ANALYTIC_SD
    near = [known for known in found.held_out.values() if shape.covered_by(known)]
    if not near:
        return Trust.UNCALIBRATED, UNCALIBRATED_SD
    errors = [known.capacity / _MEDIAN_OF_SD for known in near if known.capacity is not None]
    return Trust.CALIBRATED, max(LEAST_SD, sum(errors) / len(errors)) if errors else UNTOLD_SD
