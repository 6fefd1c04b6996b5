"""Moments on the client's clock: when a board's readings were taken, and when no request was under way."""

from typing import Final

import numpy as np
import pandas as pd

from pd_analysis.energy.readings import Window
from pd_contracts.records import Clock

# Two clocks of one host differ by less than this, the drift between two wall-clock readings.
SAME_CLOCK_S: Final = 0.1
# A board is idle from this long after the last request (its power settles, and averages reach back 1 s) …
SETTLE_S: Final = 1.0
# … if it stays so for this long.
IDLE_LEAST_S: Final = 1.0


def clock_shift(recorder: Clock, client: Clock) -> float:
    """Seconds to add to the recorder's monotonic times to have the client's; 0 where both run on one host.

    Where two processes say that they share a monotonic clock, their wall clocks are ignored: one may have been set meanwhile.
    """
    if recorder.boot and recorder.boot == client.boot:
        return 0.0
    shift = (recorder.wall - recorder.monotonic) - (client.wall - client.monotonic)
    return 0.0 if abs(shift) < SAME_CLOCK_S else shift


def idle_stretches(rows: pd.DataFrame, start: float, end: float) -> list[Window]:
    """Parts of [start, end] in which no request was under way for a while; a request without an end blocks all that follows."""
    sent = rows.loc[rows["sent"].notna(), ["sent", "end"]].fillna({"end": np.inf}).sort_values("sent")
    stretches = []
    free_from = start
    for begun, ended in sent.itertuples(index=False):
        stretches.append((free_from, min(begun, end)))
        free_from = max(free_from, ended + SETTLE_S)
    stretches.append((free_from, end))
    return [(a, b) for a, b in stretches if b - a >= IDLE_LEAST_S]
