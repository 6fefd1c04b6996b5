"""What a recording at 20 ms says about how a board reads itself: update periods, phases, the average's window, the instant power's window.

The board must be under a square wave. Nothing here knows a parameter: the same code looks at a real board's recording and at one of
the fake library, so that the fake can be compared with the board.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pd_contracts.records import GpuSample

PERIOD_S = 0.1
CLOSE_S = 0.03  # samples further apart say too little about when something changed between them
Read = Callable[[GpuSample], float | None]


def changes(samples: Sequence[GpuSample], read: Read) -> list[tuple[float, float]]:
    """Times before and after each change of a reading."""
    return [(a.t, b.t) for a, b in itertools.pairwise(samples) if read(a) != read(b)]


def period(samples: Sequence[GpuSample], read: Read) -> float:
    """Median time between changes, of those that did not pause in between."""
    times = [after for _, after in changes(samples, read)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return statistics.median(gap for gap in gaps if gap < 1.5 * min(statistics.median(gaps), PERIOD_S))


def phase(samples: Sequence[GpuSample], read: Read) -> float:
    """When in each 0.1 s a reading changes: the middle of where most of the changes can have been."""
    grid = np.arange(0, PERIOD_S, 0.001)
    votes = np.zeros(len(grid))
    for before, after in changes(samples, read):
        if after - before < CLOSE_S:
            votes += (grid - before) % PERIOD_S <= after - before
    best = grid[votes >= votes.max()] / PERIOD_S * 2 * math.pi
    return float(np.angle(np.exp(1j * best).mean()) % (2 * math.pi) / (2 * math.pi) * PERIOD_S)


def at_updates(samples: Sequence[GpuSample], read: Read) -> tuple[np.ndarray, np.ndarray]:
    """Times of the updates, by the phase, and what the reading was until the next."""
    first, offset = samples[0].t, phase(samples, read)
    slots = {math.floor((sample.t - offset) / PERIOD_S): sample for sample in samples}  # the last sample of each
    found = [(slot * PERIOD_S + offset, read(sample)) for slot, sample in slots.items() if slot * PERIOD_S > first]
    return np.array([t for t, _ in found]), np.array([value for _, value in found], dtype=float)


@dataclass(frozen=True)
class Fit:
    """What a recording of one board shows.

    Attributes:
        energy_period_s, power_period_s: how often the counter and the power readings change.
        power_offset_s: how long after the counter the power readings change, within 0.1 s.
        average_window_s: the window whose mean, by the counter, is nearest to the average; `average_error` how near, relative.
        instant_least_s, instant_most_s: bounds of the window of the instant power.
        idle_w, busy_w: the wave's levels.
    """

    energy_period_s: float
    power_period_s: float
    power_offset_s: float
    average_window_s: float
    average_error: float
    instant_least_s: float
    instant_most_s: float
    idle_w: float
    busy_w: float


def fit(samples: Sequence[GpuSample], settled_s: float = 0.0) -> Fit:
    """Look at one board's samples; windows are fitted from `settled_s` after the first on."""
    energy_t, energy_mj = at_updates(samples, _energy)
    power_t, power_w = at_updates(samples, _power)
    means = np.diff(energy_mj) / 1e3 / PERIOD_S
    middle = (means.min() + means.max()) / 2
    idle, busy = (float(np.median(means[part])) for part in (means < middle, means > middle))
    edges = _edges(energy_t, means, idle, busy)
    window, error = _average_window(samples, energy_t, energy_mj / 1e3, settled_s)
    least, most = _instant_window(edges, power_t, power_w, idle, busy)
    return Fit(
        energy_period_s=period(samples, _energy),
        power_period_s=period(samples, _power),
        power_offset_s=(phase(samples, _power) - phase(samples, _energy)) % PERIOD_S,
        average_window_s=window,
        average_error=error,
        instant_least_s=least,
        instant_most_s=most,
        idle_w=idle,
        busy_w=busy,
    )


def _energy(sample: GpuSample) -> float | None:
    return sample.energy_mj


def _power(sample: GpuSample) -> float | None:
    return sample.power_w


def _average(sample: GpuSample) -> float | None:
    return sample.power_average_w


def _edges(t: np.ndarray, means: np.ndarray, idle: float, busy: float) -> list[tuple[float, bool]]:
    """When the wave rose (True) or fell: where inside of an update, its energy says."""
    found = []
    for number in range(1, len(means) - 1):
        share = (means[number] - idle) / (busy - idle)
        before, after = means[number - 1] > (idle + busy) / 2, means[number + 1] > (idle + busy) / 2
        if before != after and 0.05 < share < 0.95:
            part = 1 - share if after else share
            found.append((float(t[number] + part * PERIOD_S), bool(after)))
    return found


def _average_window(
    samples: Sequence[GpuSample], energy_t: np.ndarray, joules: np.ndarray, settled_s: float
) -> tuple[float, float]:
    t, average = at_updates(samples, _average)
    results = []
    for window in np.arange(0.2, 2.01, 0.05):
        use = (t - window > energy_t[0] + settled_s) & (t < energy_t[-1])
        if use.sum() < 10:
            continue
        mean = (np.interp(t[use], energy_t, joules) - np.interp(t[use] - window, energy_t, joules)) / window
        results.append((float(np.sqrt(((mean / average[use] - 1) ** 2).mean())), float(window)))
    error, window = min(results)
    return window, error


def _instant_window(
    edges: Sequence[tuple[float, bool]], t: np.ndarray, power: np.ndarray, idle: float, busy: float
) -> tuple[float, float]:
    """A reading that still shows the level before an edge looked only at what was before it, one that shows the new one only after.

    An update that comes d seconds after an edge and shows all of the new level has a window of d at most; one that shows a part of
    both has one of d at least.
    """
    least, most = 0.0, math.inf
    for edge, rising in edges:
        number = int(np.searchsorted(t, edge))
        if number >= len(t):
            continue
        level = (power[number] - idle) / (busy - idle)
        new = level if rising else 1 - level
        since = float(t[number] - edge)
        if new > 0.9:
            most = min(most, since)
        elif new > 0.1:
            least = max(least, since)
    return least, most
