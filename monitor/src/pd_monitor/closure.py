"""The difference between the integral of power and the energy counter: a permanent check of every board.

Energies are computed from the counter; the integral of the readings shows whether it is right. At one sample a
second the instant power, which looks at a fraction of each 0.1 s, misses what happens in between; the board's own average does not.
"""

from dataclasses import dataclass, field
from typing import Final

from pd_contracts.records import GpuSample

# Long enough that the counter's own steps (0.1 s at each end) are below half a percent.
WINDOW_S: Final = 60.0
# A gap in the samples would be bridged by a straight line that was not measured.
LONGEST_GAP_S: Final = 3.0


@dataclass(slots=True)
class Closure:
    """One board's running window. `ratios` is of the last whole one: kind of power to integral / counter - 1."""

    window_s: float = WINDOW_S
    ratios: dict[str, float] = field(default_factory=dict)
    _first: GpuSample | None = None
    _last: GpuSample | None = None
    _instant: float | None = 0.0
    _average: float | None = 0.0

    def add(self, sample: GpuSample) -> None:
        """Take the next sample; one without a counter, after a gap or with a counter that went back starts a new window."""
        last = self._last
        if self._first is None or last is None or not _continues(last, sample):
            self._start(sample)
            return
        step = (sample.t - last.t) / 2
        self._instant = _plus(self._instant, step, last.power_w, sample.power_w)
        self._average = _plus(self._average, step, last.power_average_w, sample.power_average_w)
        self._last = sample
        if sample.t - self._first.t >= self.window_s:
            counted = ((sample.energy_mj or 0.0) - (self._first.energy_mj or 0.0)) / 1e3
            kinds = {"instant": self._instant, "average": self._average}
            known = {kind: joules for kind, joules in kinds.items() if joules is not None}
            self.ratios = {kind: joules / counted - 1 for kind, joules in known.items()} if counted > 0 else {}
            self._start(sample)

    def _start(self, sample: GpuSample) -> None:
        self._first = self._last = sample if sample.energy_mj is not None else None
        self._instant = self._average = 0.0


def _continues(last: GpuSample, sample: GpuSample) -> bool:
    if last.energy_mj is None or sample.energy_mj is None:
        return False
    return 0 < sample.t - last.t <= LONGEST_GAP_S and sample.energy_mj >= last.energy_mj


def _plus(joules: float | None, half_step_s: float, before: float | None, now: float | None) -> float | None:
    """One more trapezoid; a reading that is missing makes the whole window's integral unknown."""
    if joules is None or before is None or now is None:
        return None
    return joules + half_step_s * (before + now)
