"""Lets an energy counter through only after it agreed with the integrated power.

Counters of boards that report through ROCm SMI were seen to run at the wrong rate and backwards, so each is checked first.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

# Long enough for some fifty updates of a counter, and for the lag of an average power.
WINDOW_S: Final = 5.0
AGREEMENT: Final = 0.15


@dataclass(slots=True)
class EnergyGate:
    """One board. Closed until a window agreed; a counter that went back closes it again."""

    window_s: float = WINDOW_S
    reason: str = "not yet compared with the power"
    _points: list[tuple[float, float, float]] = field(default_factory=list)

    def passes(self, t: float, power_w: float | None, energy_j: float) -> bool:
        """True if the counter can be believed; `reason` says why not."""
        if self._points and energy_j < self._points[-1][2]:
            self._points.clear()
            self.reason = "the counter went backwards"
        if power_w is None:
            return not self.reason
        self._points.append((t, power_w, energy_j))
        if t - self._points[0][0] >= self.window_s:
            self.reason = self._verdict()
            self._points = self._points[-1:]
        return not self.reason

    def _verdict(self) -> str:
        points = self._points
        integral = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
        counted = points[-1][2] - points[0][2]
        if integral > 0 and abs(counted / integral - 1) <= AGREEMENT:
            return ""
        return f"the counter says {counted:.1f} J where the power's integral is {integral:.1f} J"
