"""Whether a run was in a steady state: while a queue grows, latency depends on how long the run lasts."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pd_analysis.numbers.evaluation import Result
from pd_analysis.records.columns import Floats

# Factor by which TTFT and the requests in flight rise from the first third to the last in a saturated run.
GROWS: Final = 1.5
LEAST: Final = 30  # with fewer requests, thirds say nothing
_SETTLED: Final = 1.25  # the first tenth is warm-up if its TTFT is further from the rest's than this
_TENTHS: Final = 10


@dataclass(frozen=True)
class Steadiness:
    """The first and last third of a run compared; None is unknown.

    Attributes:
        achieved: requests served a second, while requests were still sent, over those offered.
        ttft_drift: median TTFT of the last third over that of the first.
        flight_drift: mean requests in flight in the last third over that in the first.
        settle_s: seconds after which the run is like its rest; 0 if it always is.
    """

    achieved: float | None
    ttft_drift: float | None
    flight_drift: float | None
    settle_s: float

    @property
    def saturated(self) -> bool:
        """True if more requests came than were served: both TTFT and the requests in flight kept rising."""
        drifts = self.ttft_drift, self.flight_drift
        return all(drift is not None and drift > GROWS for drift in drifts)


def steadiness(result: Result) -> Steadiness:
    """Look at the requests in the order of their schedule; of repeats, the worst counts."""
    found = [_steadiness(run.requests.measured) for run in result.runs]
    return max(found, key=lambda each: (each.saturated, each.ttft_drift or 0.0))


def _steadiness(measured: pd.DataFrame) -> Steadiness:
    served = measured[measured["ok"]]
    if len(served) < LEAST:
        return Steadiness(achieved=None, ttft_drift=None, flight_drift=None, settle_s=0.0)
    due = measured["scheduled"].to_numpy(dtype=np.float64)
    start, end = float(due[0]), float(due[-1])
    thirds = np.array_split(served["ttft"].to_numpy(dtype=np.float64), 3)
    flights = _in_flight(measured, np.linspace(start, end, 301))
    return Steadiness(
        achieved=_achieved(served, len(measured), start, end),
        ttft_drift=_ratio(float(np.median(thirds[2])), float(np.median(thirds[0]))),
        flight_drift=_ratio(float(flights[200:].mean()), float(flights[10:100].mean())),
        settle_s=_settle_s(served, start),
    )


def _achieved(served: pd.DataFrame, offered: int, start: float, end: float) -> float | None:
    """Requests that ended in the second half of the sending, over those due in it; the tail after the last send does not count."""
    middle = (start + end) / 2
    ended = int(served["last"].between(middle, end).sum())
    due = int((served["scheduled"] >= middle).sum())
    return _ratio(ended, due) if offered else None


def _in_flight(measured: pd.DataFrame, times: Floats) -> Floats:
    begun = np.sort(measured["scheduled"].to_numpy(dtype=np.float64))
    ended = np.sort(measured["end"].dropna().to_numpy(dtype=np.float64))
    under_way = np.searchsorted(begun, times, side="right") - np.searchsorted(ended, times, side="right")
    return under_way.astype(np.float64)


def _settle_s(served: pd.DataFrame, start: float) -> float:
    """Until the first tenth that is like the second half."""
    tenths = np.array_split(np.arange(len(served)), _TENTHS)
    ttft = served["ttft"].to_numpy(dtype=np.float64)
    usual = float(np.median(ttft[len(ttft) // 2 :]))
    for tenth in tenths[: _TENTHS // 2]:
        if usual / _SETTLED <= float(np.median(ttft[tenth])) <= usual * _SETTLED:
            return max(0.0, float(served["scheduled"].iloc[int(tenth[0])]) - start) if tenth[0] else 0.0
    return 0.0


def _ratio(last: float, first: float) -> float | None:
    return last / first if first > 0 else None
