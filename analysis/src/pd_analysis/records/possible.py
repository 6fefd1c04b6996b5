"""What requests cannot have done: their times are stamped on one clock, so that what comes later is never earlier."""

from pathlib import Path
from typing import Final

import pandas as pd

from pd_analysis.records.columns import STAGES
from pd_analysis.words.language import mark
from pd_contracts.records import RecordError, Workload

_DRAWN: Final = ("poisson", "constant")  # a turn of a conversation is due when the answer before it has come
# Stamps of the kernel are brought to the client's clock, and a sent request may be noted a moment late.
TOLERANCE_S: Final = 0.01

_SENT_EARLY: Final = mark("{path}: request {number} was sent before it was due; measure it again")
_ANSWERED_EARLY: Final = mark("{path}: request {number} was answered before it was sent; measure it again")
_BACKWARDS: Final = mark("{path}: the tokens of request {number} are not in the order of time; measure it again")
_ENDED_EARLY: Final = mark("{path}: request {number} got tokens after its end; measure it again")
_NEGATIVE_STAGE: Final = mark("{path}: a stage of request {number} took less than no time; measure it again")


_OTHER_RATE: Final = mark("{path}: requests were due at {found} a second, its manifest says {told}; measure it again")

# So far may the rate of a schedule be from the one that it was drawn for; Poisson arrivals are within a third of it from this many on.
RATE_FACTOR: Final = 2.0
RATE_REQUESTS: Final = 30
WINDOW_TOLERANCE_S: Final = 0.1  # the load generator notes the end of its window a moment after the last answer's


def refuse_impossible(rows: pd.DataFrame, path: Path) -> None:
    """Do nothing if all requests can have been so.

    Raises:
        RecordError: names the first request that cannot, and why.
    """
    sent = rows["sent"].fillna(rows["scheduled"])
    found = {
        _SENT_EARLY: sent < rows["scheduled"] - TOLERANCE_S,
        _ANSWERED_EARLY: rows["first"] < sent - TOLERANCE_S,
        _BACKWARDS: rows["shortest_gap"] < -TOLERANCE_S,
        _ENDED_EARLY: rows["end"] < rows["last"] - TOLERANCE_S,
        _NEGATIVE_STAGE: (rows[list(STAGES)] < -TOLERANCE_S * 1e3).any(axis="columns"),
    }
    for message, wrong in found.items():
        if wrong.any():
            raise RecordError(message, path=path, number=int(rows.loc[wrong, "index"].iloc[0]))


def refuse_other_rate(rows: pd.DataFrame, workload: Workload, path: Path) -> None:
    """Do nothing if requests were due about as often as the manifest says, or if that is unknown.

    Raises:
        RecordError: with both rates.
    """
    due = rows.loc[~rows["preheat"], "scheduled"]
    drawn = workload.arrival in _DRAWN and workload.rate > 0 and "turns" not in workload.options
    if not drawn or len(due) < RATE_REQUESTS:
        return
    seconds = float(due.max() - due.min())
    found = (len(due) - 1) / seconds if seconds > 0 else float("inf")
    if not 1 / RATE_FACTOR <= found / workload.rate <= RATE_FACTOR:
        raise RecordError(_OTHER_RATE, path=path, found=f"{found:.3g}", told=f"{workload.rate:.3g}")


def window_of(rows: pd.DataFrame) -> tuple[float, float]:
    """First scheduled send to last end, of all requests but those that were sent as warm-up."""
    sent = rows[~rows["preheat"]]
    return float(sent["scheduled"].min()), float(sent[["scheduled", "last", "end"]].max().max())


def apart(one: tuple[float, float], two: tuple[float, float]) -> bool:
    """Whether two windows are not the same one."""
    return any(abs(mine - other) > WINDOW_TOLERANCE_S for mine, other in zip(one, two, strict=True))
