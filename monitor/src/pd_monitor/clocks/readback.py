"""Whether a board did what it was asked: setters may report success and change nothing, or something else."""

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pd_contracts.clock_events import CLOCK_EVENTS
from pd_contracts.records import GpuSample
from pd_monitor.clocks.plan import Wish

# Clocks come in steps of 15 MHz.
CLOCK_STEP_MHZ: Final = 15
# Under a cap that is reached, the draw settles within this share of it.
CAP_SHARE: Final = 0.05
_IDLE: Final = CLOCK_EVENTS["gpu_idle"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`word` is one of held, clamped (lower than asked for), ignored, never reached (a cap above the draw), not under load, free."""

    word: str
    achieved_mhz: float | None
    peak_w: float | None


def judge(wish: Wish, samples: Sequence[GpuSample], cap_w: float | None) -> Verdict:
    """`cap_w` is the limit that the board says it has."""
    busy = [sample for sample in samples if sample.throttle_reasons is not None and not sample.throttle_reasons & _IDLE]
    clocks = [sample.sm_clock_mhz for sample in busy if sample.sm_clock_mhz is not None]
    powers = [sample.power_average_w for sample in busy if sample.power_average_w is not None]
    achieved = statistics.median(clocks) if clocks else None
    peak = max(powers, default=None)
    return Verdict(_word(wish, achieved, peak, cap_w), achieved, peak)


def _word(wish: Wish, achieved: float | None, peak: float | None, cap_w: float | None) -> str:
    words = []
    if wish.lock_mhz is not None:
        words.append(_lock_word(wish.lock_mhz, achieved))
    if wish.cap_w is not None:
        words.append(_cap_word(wish.cap_w, peak, cap_w))
    return ", ".join(words) or "free"


def _lock_word(wanted: int, achieved: float | None) -> str:
    if achieved is None:
        return "not under load"
    if abs(achieved - wanted) <= CLOCK_STEP_MHZ:
        return "held"
    return "clamped" if achieved < wanted else "ignored"


def _cap_word(wanted: float, peak: float | None, cap_w: float | None) -> str:
    if cap_w is None or abs(cap_w - wanted) > 1:
        return "ignored"
    if peak is None:
        return "not under load"
    if peak > wanted * (1 + CAP_SHARE):
        return "ignored"
    return "held" if peak >= wanted * (1 - CAP_SHARE) else "never reached"


def joules(samples: Sequence[GpuSample], begun: float, ended: float) -> float | None:
    """Energy between two moments (monotonic seconds) by the counter, interpolated between samples; None without them."""
    points = [(sample.t, sample.energy_mj / 1e3) for sample in samples if sample.energy_mj is not None]
    if len(points) < 2 or begun < points[0][0] or ended > points[-1][0] or points[-1][1] < points[0][1]:
        return None
    return _at(points, ended) - _at(points, begun)


def _at(points: Sequence[tuple[float, float]], t: float) -> float:
    place = max(1, bisect_left(points, (t, 0.0)))
    place = min(place, len(points) - 1)
    (t0, e0), (t1, e1) = points[place - 1], points[place]
    return e0 + (e1 - e0) * (t - t0) / (t1 - t0)
