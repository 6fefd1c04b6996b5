"""Plausibility checks of a board's readings: each against what a board can draw, and the energy counter against the power.

A board that fails a check gets no energy, so no decision rests on it. The report shows its readings and says what is wrong.
"""

from collections.abc import Iterator, Sequence
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
# 480 recordings of H200 boards: the average's integral was within 3.1% of the counter. The instant power looks at a quarter of the time
# and was up to 18.5% off over 6 s, so it is weaker evidence on its own.
DISAGREES: Final = 0.10
DISAGREES_INSTANT: Final = 0.30
# A board at work never draws the same to the milliwatt for so long; one at rest may, where readings are whole watts.
STUCK_S: Final = 5.0
# In a short window less is enough, if it is as large a part of it.
STUCK_SHARE: Final = 0.4
STUCK_LEAST_S: Final = 2.0


class Check(StrEnum):
    """What can be wrong with a board's readings."""

    UNREAD = "unread"
    IMPOSSIBLE = "impossible"
    JUMP = "jump"
    STILL = "still"
    DISAGREE = "disagree"
    STUCK = "stuck"
    IDLE = "idle"


@dataclass(frozen=True)
class Fault:
    """A check that failed.

    Attributes:
        value: unread, still, stuck, idle: seconds; impossible: watts; jump: joules; disagree: what the counter says, in joules.
        bound: impossible: the most watts that are believed; stuck: the watts; jump: the seconds that it took; disagree: what the power says, in joules.
    """

    check: Check
    value: float
    bound: float = 0.0


def faults_of(
    samples: pd.DataFrame, window: Window, interval_s: float, limit_w: float | None, idle: Sequence[Window] = ()
) -> tuple[Fault, ...]:
    """Everything that is wrong with one board's readings over a window, each kind once; of a counter only where it is the energy.

    `idle` are the stretches without a request.
    """
    found = [_unread(samples, window, interval_s), _impossible(samples, window, limit_w)]
    if counter_j(samples, window, interval_s) is not None:
        found += [_jump(samples, window, limit_w), _still(samples, window), _disagree(samples, window, interval_s)]
    else:
        found.append(_stuck(samples, window, idle))
    return tuple(fault for fault in found if fault is not None)


def believable(samples: pd.DataFrame, column: str, limit_w: float | None) -> "pd.Series[bool]":
    """Which power readings are physically possible; unknown ones are not."""
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
    times, millijoules = _near(samples, window, "energy_mj")
    for seconds, joules in zip(np.diff(times), np.diff(millijoules) / 1e3, strict=True):
        if joules > most_counted_j(limit_w, float(seconds)):
            return Fault(Check.JUMP, float(joules), float(seconds))
    return None


def _still(samples: pd.DataFrame, window: Window) -> Fault | None:
    """The longest stretch over which the counter does not change."""
    starts, ends, _ = _unchanged(*_near(samples, window, "energy_mj"))
    longest = float((ends - starts).max(initial=0.0))
    return Fault(Check.STILL, longest) if longest >= STANDS_STILL_S else None


def _stuck(samples: pd.DataFrame, window: Window, idle: Sequence[Window]) -> Fault | None:
    """The longest stretch of work over which the power behind the energy does not change; no other check would find this fault."""
    column = "power_w" if samples["power_average_w"].isna().all() else "power_average_w"
    stretches = zip(*_unchanged(*_near(samples, window, column)), strict=True)
    busy = [(float(end - start) - _overlap((start, end), idle), float(watts)) for start, end, watts in stretches]
    seconds, watts = max(busy, default=(0.0, 0.0))
    most = min(STUCK_S, max(STUCK_LEAST_S, STUCK_SHARE * (window[1] - window[0])))
    return Fault(Check.STUCK, seconds, watts) if seconds >= most else None


def _unchanged(times: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Begin, end and value of every stretch of equal readings."""
    if not times.size:
        return times, times, values
    moved = np.flatnonzero(np.diff(values) != 0) + 1
    first = np.concatenate(([0], moved)).astype(int)
    return times[first], times[np.concatenate((moved - 1, [times.size - 1])).astype(int)], values[first]


def _overlap(stretch: Window, others: Sequence[Window]) -> float:
    return sum(max(0.0, min(stretch[1], end) - max(stretch[0], begin)) for begin, end in others)


def _near(samples: pd.DataFrame, window: Window, column: str) -> tuple[Floats, Floats]:
    """A reading over a window, with those just outside it."""
    times, values = known(samples, column)
    near = (times >= window[0] - MARGIN_S) & (times <= window[1] + MARGIN_S)
    return times[near], values[near]


def _disagree(samples: pd.DataFrame, window: Window, interval_s: float) -> Fault | None:
    """A fault if no power reading agrees with the counter, or one exceeds it."""
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
