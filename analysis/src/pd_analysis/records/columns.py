"""A run's requests as columns: one row per request, and every gap between token chunks in one array.

The definitions are those of `pd_contracts.latency`, which takes one request at a time. They are applied to whole columns, because a run
may have a million requests of a hundred chunks; a test compares the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pd_contracts.latency import within

Floats = npt.NDArray[np.float64]
Gaps = npt.NDArray[np.float32]  # seven digits of a duration are more than a clock has, at half the memory
Flags = npt.NDArray[np.bool_]

# The stages that the proxy reports, in the order in which a request passes them; `pd_contracts.timing.Stages` says what each is.
STAGES: Final = ("queue", "prefill", "kv_and_first_decode", "decode")

FROM_PREFILL: Final = "prefill"  # what `Stages.first_token` says of a token that was handed off
EMPTY_KIND: Final = "empty"  # a request without an error that wrote no token does not count as served


@dataclass(frozen=True)
class Requests:
    """All requests of a run.

    Attributes:
        rows: one row per request in schedule order. Durations and times are seconds (times on the client's monotonic clock), stages
            milliseconds, unknown is NaN; `ok` is `latency.succeeded`, `good` is `latency.meets`, `failure` a kind or "",
            `output_hash` a number that is equal for equal output, 0 if unknown; `prefill_instance` and `decode_instance` are the engines'
            names, "" if unknown; `why` says what chose them, "" if no prediction did; `handed_off` is true if prefill wrote the first token, so that decode wrote the rest;
            `preheat` requests were sent as warm-up, `warmup` ones count as warm-up; `chunk_tokens` is the sum over its chunks.
        gaps: every gap between token chunks of successful measured requests, pooled, in seconds, the shortest first.
        excerpt: the gaps of a part of the run with the time at which each ended: columns index, t, gap.
    """

    rows: pd.DataFrame
    gaps: Gaps
    excerpt: pd.DataFrame

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The rows of the measured window: all but warm-up."""
        return _only(self.rows, ~self.rows["warmup"])

    @cached_property
    def served(self) -> pd.DataFrame:
        """The measured rows that succeeded."""
        return _only(self.measured, self.measured["ok"])

    @cached_property
    def timetable(self) -> tuple[float, float]:
        """Mean and standard deviation of when requests were due, in seconds from the first: equal for equal schedules."""
        due = self.rows.loc[~self.rows["preheat"], "scheduled"]
        return float((due - due.min()).mean()), float(due.std(ddof=0))

    @cached_property
    def whys(self) -> frozenset[str]:
        """What chose engines, where the proxy's predictions did; empty with ROUTING=static."""
        return frozenset(self.rows["why"].unique()) - {""}

    @cached_property
    def _sorted(self) -> dict[str, Floats]:
        return {}

    def ordered(self, column: str) -> Floats | Gaps:
        """Known values of a column over `served`, or all gaps for "itl", the smallest first."""
        if column == "itl":
            return self.gaps
        if column not in self._sorted:
            self._sorted[column] = np.sort(self.served[column].dropna().to_numpy(dtype=np.float64))
        return self._sorted[column]


def _only(rows: pd.DataFrame, kept: "pd.Series[bool]") -> pd.DataFrame:
    """The rows that are kept; the same frame, not a copy, if all are."""
    return rows if kept.all() else rows[kept]


def pooled(parts: Sequence[Requests]) -> Requests:
    """Requests of several runs of one load as if they were one run; times stay each run's own, and the excerpt is the first's."""
    if len(parts) == 1:
        return parts[0]
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    return Requests(rows=rows, gaps=np.sort(np.concatenate([part.gaps for part in parts])), excerpt=parts[0].excerpt)


def quantiles(ordered: Floats | Gaps, percents: Sequence[float] | Floats) -> Floats:
    """Percentiles of values that are sorted already, with linear interpolation as `latency.percentile`."""
    position = (ordered.size - 1) * np.asarray(percents, dtype=np.float64) / 100
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, ordered.size - 1)
    below, above = ordered[low].astype(np.float64), ordered[high].astype(np.float64)
    return np.asarray(below + (above - below) * (position - low))


def meeting(rows: pd.DataFrame, limits_ms: Mapping[str, float], scale: float = 1.0) -> Flags:
    """`latency.meets` for each row, the limits times `scale`."""
    met = rows["ok"].to_numpy(dtype=bool)
    for name, limit in limits_ms.items():
        met = met & within(name, rows[name].to_numpy(dtype=np.float64), rows["output_tokens"].to_numpy(), limit * scale)
    return met
