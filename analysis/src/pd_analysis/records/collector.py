"""Records to columns, in batches that need not stay in memory."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pd_analysis.records.columns import EMPTY_KIND, FROM_PREFILL, STAGES, Flags, Floats, Gaps, Requests, meeting
from pd_analysis.words.language import mark
from pd_contracts.records import RequestRecord

_ALWAYS: Final = (-np.inf, np.inf)
_GROWTH: Final = 1.15
_EMPTY_MESSAGE: Final = mark("the stream ended without an error and without a token")
_NO_EXCERPT: Final = pd.DataFrame({"index": np.empty(0, np.int64), "t": np.empty(0), "gap": np.empty(0)})


def requests_of(
    records: Iterable[RequestRecord],
    limits_ms: Mapping[str, float],
    *,
    cut: float = -np.inf,
    excerpt: tuple[float, float] = _ALWAYS,
) -> Requests:
    """Columns of records that are all in memory; see `Collector`."""
    collector = Collector(limits_ms, cut=cut, excerpt=excerpt)
    collector.add(list(records))
    return collector.finish()


class Collector:
    """Takes records in batches and keeps columns.

    `limits_ms` are the goodput limits of `latency.meets`; requests that were due before `cut` count as warm-up; `excerpt` is the
    part of the run whose gaps are kept with their times.
    """

    def __init__(
        self, limits_ms: Mapping[str, float], *, cut: float = -np.inf, excerpt: tuple[float, float] = _ALWAYS
    ) -> None:
        self._limits = limits_ms
        self._cut = cut
        self._span = excerpt
        self._rows: list[pd.DataFrame] = []
        self._gaps: Gaps = np.empty(0, dtype=np.float32)
        self._used = 0
        self._excerpts: list[pd.DataFrame] = []

    def add(self, batch: Sequence[RequestRecord]) -> None:
        """Put a batch into columns; the records are not kept."""
        if not batch:
            return
        counts = np.fromiter((len(record.chunks) for record in batch), np.int64, len(batch))
        flat = chain.from_iterable(chain.from_iterable(record.chunks for record in batch))
        pairs = np.fromiter(flat, np.float64, 2 * int(counts.sum()))
        times, tokens = pairs[::2], pairs[1::2]
        ends = counts.cumsum()
        rows = _columns(batch)
        rows["warmup"] = rows["preheat"] | (rows["scheduled"] < self._cut)
        rows["ok"] = (counts > 0) & (rows["failure"] == "")
        rows.loc[~rows["ok"] & (rows["failure"] == ""), ["failure", "failure_message"]] = [EMPTY_KIND, _EMPTY_MESSAGE]
        _add_latencies(rows, times, tokens, counts, ends)
        rows["good"] = meeting(rows, self._limits)
        # The gap before a request's first chunk leads back to another request's last one, so it is no gap.
        gaps = np.diff(times, prepend=0.0)
        first = (ends - counts)[counts > 0]
        gaps[first] = 0.0
        rows["longest_gap"], rows["shortest_gap"] = _extremes(gaps, first, counts)
        counted = np.repeat((rows["ok"] & ~rows["warmup"]).to_numpy(), counts)
        counted[first] = False
        index = np.repeat(rows["index"].to_numpy(), counts)
        shown = (times >= self._span[0]) & (times <= self._span[1])
        self._keep(gaps[counted])
        self._excerpts.append(_excerpt(index, times, gaps, counted & shown))
        self._rows.append(rows)

    def finish(self) -> Requests:
        rows = pd.concat(self._rows, ignore_index=True) if self._rows else _columns([])
        self._rows.clear()
        if not rows["scheduled"].is_monotonic_increasing or rows["scheduled"].duplicated().any():
            rows = rows.sort_values(["scheduled", "index"], ignore_index=True, kind="stable")
        excerpt = pd.concat(self._excerpts, ignore_index=True) if self._excerpts else _NO_EXCERPT
        self._gaps.resize(self._used, refcheck=False)
        self._gaps.sort()
        return Requests(rows=rows, gaps=self._gaps, excerpt=excerpt.sort_values(["t", "index"], ignore_index=True))

    def _keep(self, gaps: Floats) -> None:
        """Append. The array grows in place, because a second one for a moment would be half of all memory."""
        end = self._used + gaps.size
        if end > self._gaps.size:
            self._gaps.resize(max(end, int(self._gaps.size * _GROWTH)), refcheck=False)
        self._gaps[self._used : end] = gaps
        self._used = end


def _columns(batch: Sequence[RequestRecord]) -> pd.DataFrame:
    """What records say without their chunks."""
    columns: dict[str, Any] = {
        "index": np.array([record.index for record in batch], dtype=np.int64),
        "preheat": np.array([record.warmup for record in batch], dtype=bool),
        "failure": [record.error.kind if record.error else "" for record in batch],
        "failure_message": [record.error.message if record.error else "" for record in batch],
        "output_hash": _hashes(batch),
    }
    for name in ("prefill_instance", "decode_instance", "why"):
        columns[name] = [getattr(record.stages, name, "") for record in batch]
    columns["handed_off"] = np.array(
        [getattr(record.stages, "first_token", "") == FROM_PREFILL for record in batch], dtype=bool
    )
    for name in ("scheduled", "sent", "end", "prompt_tokens", "output_tokens", "requested_output_tokens"):
        columns[name] = np.array([getattr(record, name) for record in batch], dtype=np.float64)
    for stage in STAGES:
        columns[stage] = np.array([getattr(record.stages, stage, None) for record in batch], dtype=np.float64)
    return pd.DataFrame(columns)


def _hashes(batch: Sequence[RequestRecord]) -> npt.NDArray[np.uint64]:
    known = np.array([record.output_hash is not None for record in batch], dtype=bool)
    hashed = pd.util.hash_array(
        np.array([record.output_hash or "" for record in batch], dtype=object), categorize=False
    )
    return np.where(known, hashed, np.uint64(0))


def _add_latencies(
    rows: pd.DataFrame, times: Floats, tokens: Floats, counts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> None:
    some = counts > 0
    rows["first"], rows["last"] = np.nan, np.nan
    at_first, rows["chunk_tokens"] = np.zeros(len(counts)), 0.0
    at_first[some] = tokens[(ends - counts)[some]]
    if some.any():
        rows.loc[some, "chunk_tokens"] = np.add.reduceat(tokens, (ends - counts)[some])
    rows.loc[some, "first"] = times[(ends - counts)[some]]
    rows.loc[some, "last"] = times[ends[some] - 1]
    rows["ttft"] = rows["first"] - rows["scheduled"]
    rows["ttft_from_send"] = rows["first"] - rows["sent"]
    rows["e2el"] = rows["last"] - rows["scheduled"]
    later = rows["output_tokens"] - at_first
    rows["tpot"] = ((rows["last"] - rows["first"]) / later.where(later > 0)).where(counts >= 2)


def _extremes(gaps: Floats, first: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The longest gap of each request, and the shortest or 0 if that is less; unknown of a single chunk."""
    longest, shortest = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    if first.size:
        longest[counts > 0] = np.maximum.reduceat(gaps, first)
        shortest[counts > 0] = np.minimum.reduceat(gaps, first)
    several = counts > 1
    return np.where(several, longest, np.nan), np.where(several, shortest, np.nan)


def _excerpt(index: npt.NDArray[np.int64], times: Floats, gaps: Floats, kept: Flags) -> pd.DataFrame:
    index, times, gaps = index[kept], times[kept], gaps[kept]
    return pd.DataFrame({"index": index, "t": times, "gap": gaps})
