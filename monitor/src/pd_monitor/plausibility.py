"""Readings that cannot be true: they are named, counted and kept off /metrics; a recording keeps them as they came."""

from collections.abc import Mapping
from dataclasses import dataclass

from pd_contracts.plausible import LEAST_W, STANDS_STILL_S, most_average_w, most_counted_j, most_instant_w
from pd_contracts.records import GpuSample


@dataclass(slots=True)
class Plausibility:
    """One board: bounds of its power, and what its energy counter did since the last sample."""

    _last: GpuSample | None = None
    _moved: float = 0.0  # when the counter last changed

    def doubts(self, sample: GpuSample, limit_w: float | None) -> Mapping[str, str]:
        """Readings of the sample that cannot be true, with the reason."""
        found = {
            "power_w": _power(sample.power_w, most_instant_w(limit_w)),
            "power_average_w": _power(sample.power_average_w, most_average_w(limit_w)),
            "energy_mj": self._counter(sample, limit_w),
        }
        return {name: reason for name, reason in found.items() if reason}

    def _counter(self, sample: GpuSample, limit_w: float | None) -> str:
        last = self._last
        if sample.energy_mj is None:
            return ""
        self._last = sample
        if last is None or last.energy_mj is None or sample.energy_mj != last.energy_mj:
            self._moved = sample.t
        if last is None or last.energy_mj is None:
            return ""
        joules, seconds = (sample.energy_mj - last.energy_mj) / 1e3, sample.t - last.t
        if joules < 0:
            return "the counter went backwards"
        if joules > most_counted_j(limit_w, seconds):
            return f"the counter jumped by {joules:,.0f} J in {seconds:.2f} s"
        if sample.t - self._moved >= STANDS_STILL_S and (sample.power_average_w or sample.power_w or 0) > LEAST_W:
            return f"the counter has not moved for {STANDS_STILL_S:.0f} s while the board draws power"
        return ""


def _power(watts: float | None, most_w: float) -> str:
    if watts is None:
        return ""
    if watts < LEAST_W:
        return f"{watts:.1f} W although the board answers"
    return f"{watts:,.0f} W where the board's limit allows {most_w:,.0f} W" if watts > most_w else ""
