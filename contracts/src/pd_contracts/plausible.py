"""The power that a board can draw. A reading beyond it is a fault of the driver or the counter, not a measurement.

The bounds have room above what 480 recordings of H200 boards showed (docs/results/h200): instant power, the mean of 25 ms, peaked at 1.34
times the power limit, the average of a second at 1.01 times, and the counter never ran faster than 1.04 times the limit over the time
between two readings and one update.
"""

from typing import Final

LARGEST_LIMIT_W: Final = 3000.0  # of a board that reports no limit: more than any board has
LEAST_W: Final = 0.5  # a board that answers is powered; 0 W is a failed reading that looks like one
INSTANT_SHARE: Final = 2.0
AVERAGE_SHARE: Final = 1.25
COUNTER_SHARE: Final = 1.5
COUNTER_UPDATE_S: Final = 0.2  # counters move every 0.1 s, so that two readings may enclose one update more than time
STANDS_STILL_S: Final = 2.0  # a counter that does not move for so long, while the board draws power, is frozen
# Readings may miss an end of what is measured by this many intervals, for which the nearest one then stands.
EDGE_INTERVALS: Final = 2.5


def most_instant_w(limit_w: float | None) -> float:
    """The largest instant power that is believed."""
    return INSTANT_SHARE * _limit(limit_w)


def most_average_w(limit_w: float | None) -> float:
    """The largest average of a second that is believed."""
    return AVERAGE_SHARE * _limit(limit_w)


def most_counted_j(limit_w: float | None, seconds: float) -> float:
    """The largest difference of the energy counter between two readings, in joules, that is believed."""
    return COUNTER_SHARE * _limit(limit_w) * (seconds + COUNTER_UPDATE_S)


def _limit(told_w: float | None) -> float:
    """A board's reported limit, if it is one that a board can have."""
    return min(told_w, LARGEST_LIMIT_W) if told_w and told_w > 0 else LARGEST_LIMIT_W
