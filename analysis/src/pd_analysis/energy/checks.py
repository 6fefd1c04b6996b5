"""Can a board's energy be believed? Every reading against what a board can draw, and the counter against the power, in both directions.

A board that fails one of these has no energy, so that nothing is decided on it: the report shows its readings and says what is wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import pandas as pd

from pd_analysis.energy.readings import AVERAGE_LAG_S, Window, counter_j, integral_j, known, unread_s
from pd_analysis.records.columns import Floats
from pd_contracts.plausible import (
    COUNTER_UPDATE_S,
    LEAST_W,
    STANDS_STILL_S,
    most_average_w,
    most_counted_j,
    most_instant_w,
)

# Counter and power are compared over a little more than the window, where the board mostly idles: an average of a second blurs its ends.
MARGIN_S: Final = 1.0
# 480 recordings of H200 boards: the average's integral was within 3.1 % of the counter. The instant power looks at a quarter of the time
# and was up to 18.5 % off over 6 s, so that on its own it says less.
DISAGREES: Final = 0.10
DISAGREES_INSTANT: Final = 0.30


class Check(StrEnum):
    """What can be wrong with a board's readings."""

    UNREAD = "unread"
    IMPOSSIBLE = "impossible"
    JUMP = "jump"
    STILL = "still"
    DISAGREE = "disagree"


@dataclass(frozen=True)
class Fault:
    """A check that failed.

    Attributes:
        value: unread, still: seconds; impossible: watts; jump: joules; disagree: what the counter says, in joules.
        bound: impossible: the most watts that are believed; jump: the seconds that it took; disagree: what the power says, in joules.
    """

    check: Check
    value: float
    bound: float = 0.0


def faults_of(samples: pd.DataFrame, window: Window, interval_s: float, limit_w: float | None) -> tuple[Fault, ...]:
    """Everything that is wrong with one board's readings over a window, each kind once; of a counter only where it is the energy."""
    found = [_unread(samples, window, interval_s), _impossible(samples, window, limit_w)]
    if counter_j(samples, window, interval_s) is not None:
        found += [_jump(samples, window, limit_w), _still(samples, window), _disagree(samples, window, interval_s)]
    return tuple(fault for fault in found if fault is not None)


def believable(samples: pd.DataFrame, column: str, limit_w: float | None) -> "pd.Series[bool]":
    """Which power readings a board can draw; what is unknown is none."""
    return samples[column].between(LEAST_W, _most_w(column, limit_w))


def _most_w(column: str, limit_w: float | None) -> float:
    return most_instant_w(limit_w) if column == "power_w" else most_average_w(limit_w)


def _unread(samples: pd.DataFrame, window: Window, interval_s: float) -> Fault | None:
    """Neither the counter nor one of the powers gives the energy of the window: readings are missing."""
    if (
        counter_j(samples, window, interval_s) is not None
        or integral_j(samples, "power_average_w", window, interval_s, lag=AVERAGE_LAG_S) is not None
        or integral_j(samples, "power_w", window, interval_s) is not None
    ):
        return None
    held = samples["energy_mj"].notna() | samples["power_w"].notna() | samples["power_average_w"].notna()
    times = samples.loc[held, "t"].to_numpy(dtype=np.float64)
    return Fault(Check.UNREAD, unread_s(times, window, interval_s))


def _impossible(samples: pd.DataFrame, window: Window, limit_w: float | None) -> Fault | None:
    inside = samples[samples["t"].between(*window)]
    for column in ("power_w", "power_average_w"):
        read = inside.loc[inside[column].notna(), column]
        wrong = read[~believable(inside.loc[read.index], column, limit_w)]
        if not wrong.empty:
            return Fault(Check.IMPOSSIBLE, float(wrong.iloc[0]), _most_w(column, limit_w))
    return None


def _jump(samples: pd.DataFrame, window: Window, limit_w: float | None) -> Fault | None:
    times, millijoules = _near(samples, window)
    for seconds, joules in zip(np.diff(times), np.diff(millijoules) / 1e3, strict=True):
        if joules > most_counted_j(limit_w, float(seconds)):
            return Fault(Check.JUMP, float(joules), float(seconds))
    return None


def _still(samples: pd.DataFrame, window: Window) -> Fault | None:
    """The longest stretch over which the counter says the same."""
    times, millijoules = _near(samples, window)
    if times.size < 2:
        return None
    moved = np.flatnonzero(np.diff(millijoules) != 0) + 1
    starts = times[np.concatenate(([0], moved))]
    ends = times[np.concatenate((moved - 1, [times.size - 1]))]
    longest = float((ends - starts).max())
    return Fault(Check.STILL, longest) if longest >= STANDS_STILL_S else None


def _near(samples: pd.DataFrame, window: Window) -> tuple[Floats, Floats]:
    """The counter over a window, with the readings just outside it."""
    times, millijoules = known(samples, "energy_mj")
    near = (times >= window[0] - MARGIN_S) & (times <= window[1] + MARGIN_S)
    return times[near], millijoules[near]


def _disagree(samples: pd.DataFrame, window: Window, interval_s: float) -> Fault | None:
    """No power reading explains what the counter says, or says more than it."""
    found = list(_comparisons(samples, window, interval_s))
    if not found or any(abs(counted - drawn) <= allowed for counted, drawn, allowed in found):
        return None
    counted, drawn, _ = min(found, key=lambda each: abs(each[0] - each[1]))
    return Fault(Check.DISAGREE, counted, drawn)


def _comparisons(samples: pd.DataFrame, window: Window, interval_s: float) -> Iterator[tuple[float, float, float]]:
    """Joules by the counter and by a power over the same time, and how far apart they may be."""
    times, millijoules = known(samples, "energy_mj")
    if times.size < 2:
        return
    average = samples["power_average_w"].notna().any()
    for column, lag, share in (
        ("power_average_w", AVERAGE_LAG_S, DISAGREES),
        ("power_w", 0.0, DISAGREES if average else DISAGREES_INSTANT),
    ):
        at, watts = known(samples, column, lag=lag)
        if at.size < 2:
            continue
        span = max(window[0] - MARGIN_S, times[0], at[0]), min(window[1] + MARGIN_S, times[-1], at[-1])
        drawn = integral_j(samples, column, span, interval_s, lag=lag) if span[1] > span[0] else None
        if drawn is None:
            continue
        counted = float(np.diff(np.interp(span, times, millijoules))[0]) / 1e3
        edges = 2 * COUNTER_UPDATE_S * float(watts[(at >= span[0]) & (at <= span[1])].max(initial=0.0))
        yield counted, drawn, share * max(abs(counted), drawn) + edges
