"""Joules between two moments, from the readings of one board: by its counter, and as the integral of its power.

Both are given only where readings reach both moments. The counter may have gaps in between, because it goes on counting; an integral
may not, because a straight line over a gap was never measured.
"""

from typing import Final

import numpy as np
import pandas as pd

from pd_analysis.records.columns import Floats
from pd_contracts.plausible import EDGE_INTERVALS

# NVML's average is that of the last second (Ampere and later), so a value belongs to half a second before it was read.
AVERAGE_LAG_S: Final = 0.5
# A gap in power readings up to this length is bridged by a straight line; in intervals, and at least these seconds.
HOLE_INTERVALS: Final = 5.0
HOLE_LEAST_S: Final = 1.0

# The better of two power readings may be this far from the counter before both count as disagreeing.
CLOSURE_LIMIT: Final = 0.03
# The part of a window before the first or after the last reading, for which the nearest one stands: at most this share of it.
BEYOND_SHARE: Final = 0.1

Window = tuple[float, float]


def interval_of(samples: pd.DataFrame, told_s: float) -> float:
    """Seconds between two samples: what the recorder says (0: nothing), or what most of them show if that is less.

    A recording may state a wrong unit, or an interval that it did not keep; trusting it would hide missing readings.
    """
    gaps = np.diff(np.sort(samples["t"].to_numpy(dtype=np.float64)))
    shown = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else told_s
    return min(told_s, shown) if told_s > 0 else shown


def known(samples: pd.DataFrame, column: str, *, lag: float = 0.0) -> tuple[Floats, Floats]:
    """Times and values of a reading where the board gave it; a time is when the value held, `lag` before it was read."""
    there = samples[column].notna()
    times = samples.loc[there, "t"].to_numpy(dtype=np.float64) - lag
    return times, samples.loc[there, column].to_numpy(dtype=np.float64)


def counter_j(samples: pd.DataFrame, window: Window, interval_s: float) -> float | None:
    """Difference of the energy counter; None if it does not reach both ends, or went backwards (the driver was reloaded)."""
    times, millijoules = known(samples, "energy_mj")
    if times.size < 2 or (np.diff(millijoules) < 0).any() or _misses(times, window, interval_s):
        return None
    first, last = np.interp(window, times, millijoules)
    return float(last - first) / 1e3


def integral_j(
    samples: pd.DataFrame, column: str, window: Window, interval_s: float, *, lag: float = 0.0
) -> float | None:
    """Trapezoids under a power reading; None with fewer than two readings, if they do not reach both ends, or with a gap."""
    times, watts = known(samples, column, lag=lag)
    longest = max(HOLE_LEAST_S, HOLE_INTERVALS * interval_s)
    if times.size < 2 or _misses(times, window, interval_s, lag):
        return None
    near = (times >= window[0] - longest) & (times <= window[1] + longest)
    if near.sum() < 2 or float(np.diff(times[near]).max()) > longest:
        return None
    return area(times, watts, window)


def area(times: Floats, watts: Floats, window: Window) -> float:
    """Trapezoids between two moments; beyond the readings the nearest one stands."""
    inside = (times > window[0]) & (times < window[1])
    at_edges = np.interp(window, times, watts)
    grid = np.concatenate(([window[0]], times[inside], [window[1]]))
    return float(np.trapezoid(np.concatenate((at_edges[:1], watts[inside], at_edges[1:])), grid))


def _misses(times: Floats, window: Window, interval_s: float, lag: float = 0.0) -> bool:
    """True if the nearest reading is too far from one of a window's ends, or too much of the window lies beyond all readings."""
    far = any(float(np.abs(times - edge).min()) > EDGE_INTERVALS * interval_s + lag for edge in window)
    beyond = max(0.0, float(times[0]) - window[0]) + max(0.0, window[1] - float(times[-1]))
    return far or beyond > BEYOND_SHARE * (window[1] - window[0]) + lag


def unread_s(times: Floats, window: Window, interval_s: float) -> float:
    """Seconds of a window in which there was no reading, at its ends and in between, beyond what an interval or two explains."""
    inside = times[(times > window[0]) & (times < window[1])]
    gaps = np.diff(np.concatenate(([window[0]], inside, [window[1]])))
    return float(gaps[gaps > EDGE_INTERVALS * interval_s].sum())


def closure(integral: float | None, counter: float | None) -> float | None:
    """How far an integral of power is from the counter, as a share of the counter; None without both."""
    return None if integral is None or not counter else integral / counter - 1
