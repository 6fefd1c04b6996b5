"""Records to columns: one row a request, and every gap between token chunks in one array.

The definitions are `pd_contracts.latency`'s; this module only applies them, a record at a time, so that raw records need not stay
in memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pd_contracts import latency
from pd_contracts.records import GpuHeader, GpuSample, RequestRecord

Floats = npt.NDArray[np.float64]

# The stages that the proxy reports, in the order in which a request passes them; `pd_contracts.timing.Stages` says what each is.
STAGES: Final = ("queue", "prefill", "kv_and_first_decode", "decode")

EMPTY_KIND: Final = "empty"  # a request without an error that wrote no token: served by nobody's measure

_TEXT: Final = ("failure", "failure_message")
_FLAGS: Final = ("warmup", "ok", "good")


@dataclass(frozen=True)
class Requests:
    """All requests of a run.

    Attributes:
        rows: one row a request in schedule order. Durations and times are seconds (times on the client's monotonic clock), stages
            milliseconds, unknown is NaN; `ok` is `latency.succeeded`, `good` is `latency.meets`, `failure` a kind or "".
        gaps: every gap between token chunks of successful measured requests, pooled, in seconds.
    """

    rows: pd.DataFrame
    gaps: Floats

    @property
    def measured(self) -> pd.DataFrame:
        """The rows of the measured window: all but warm-up."""
        return self.rows[~self.rows["warmup"]]

    @property
    def served(self) -> pd.DataFrame:
        """The measured rows that succeeded."""
        measured = self.measured
        return measured[measured["ok"]]


def requests_of(records: Iterable[RequestRecord], limits_ms: Mapping[str, float]) -> Requests:
    """Apply every definition to every record; `limits_ms` are the goodput limits of `latency.meets`."""
    rows: list[dict[str, Any]] = []
    gaps: list[Floats] = []
    for record in records:
        itl = np.array(latency.itl(record), dtype=np.float64)
        rows.append(_row(record, itl, limits_ms))
        if latency.succeeded(record) and not record.warmup:
            gaps.append(itl)
    return Requests(rows=_frame(rows), gaps=np.concatenate(gaps) if gaps else np.empty(0))


def _row(record: RequestRecord, itl: Floats, limits_ms: Mapping[str, float]) -> dict[str, Any]:
    ok = latency.succeeded(record)
    return {
        "index": record.index,
        "warmup": record.warmup,
        "ok": ok,
        "good": latency.meets(record, limits_ms),
        "failure": "" if ok else (record.error.kind if record.error else EMPTY_KIND),
        "failure_message": _failure_message(record, ok=ok),
        "scheduled": record.scheduled,
        "sent": record.sent,
        "end": record.end,
        "ttft": latency.ttft(record),
        "ttft_from_send": latency.ttft_from_send(record),
        "tpot": latency.tpot(record),
        "e2el": latency.e2el(record),
        "longest_gap": itl.max() if itl.size else None,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        **{stage: getattr(record.stages, stage, None) for stage in STAGES},
    }


def _failure_message(record: RequestRecord, *, ok: bool) -> str:
    if ok:
        return ""
    return record.error.message if record.error else "the stream ended without an error and without a token"


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).sort_values("index", ignore_index=True)
    numbers = [name for name in frame.columns if name not in {*_TEXT, *_FLAGS, "index"}]
    return frame.astype(dict.fromkeys(numbers, "float64") | dict.fromkeys(_FLAGS, "bool"))


SAMPLE_COLUMNS: Final = (
    "t",
    "index",
    "role",
    "power_w",
    "power_average_w",
    "energy_mj",
    "sm_clock_mhz",
    "utilization",
    "temperature_c",
    "throttle_reasons",
)


def samples_of(samples: Iterable[GpuSample], header: GpuHeader) -> pd.DataFrame:
    """GPU samples as columns, in time order; a sample without a role takes its board's from the header, unknown stays ""."""
    roles = {gpu.index: gpu.role for gpu in header.gpus}
    rows = [[sample.role or roles.get(sample.index) or "", *_readings(sample)] for sample in samples]
    names = ["role", *(name for name in SAMPLE_COLUMNS if name != "role")]
    frame = pd.DataFrame(rows, columns=names)
    numbers = {name: "float64" for name in SAMPLE_COLUMNS if name not in {"role", "index"}}
    return frame.astype(numbers | {"index": "int64"}).sort_values(["t", "index"], ignore_index=True)


def _readings(sample: GpuSample) -> list[Any]:
    return [getattr(sample, name) for name in SAMPLE_COLUMNS if name != "role"]
