"""Workload modes: an open or closed loop, or requests in groups of which each waits for the one before. Pure."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pd_contracts import latency
from pd_contracts.latency import percentile
from pd_contracts.records import RequestRecord


class Mode(StrEnum):
    """How requests follow each other."""

    SERVE = "serve"
    BATCH = "batch"
    PHASE_SPLIT = "phase-split"


def batches(records: Sequence[RequestRecord], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Mode batch: how long each batch took, by its size. `records` are those of the window."""
    known = {record.index: record for record in records}
    rows, first = [], 0
    for size in sizes:
        part = [known[index] for index in range(first, first + size) if index in known]
        first += size
        rows.append({"size": size, **_span(part)})
    return rows


def phases(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Mode phase-split: requests of one token against those of all; decode is the difference of the medians.

    A server that keeps prefixes answers the second from its cache, and the difference would hide prefill: `prefix_cache` says so.
    """
    single = [record for record in records if record.requested_output_tokens == 1]
    whole = [record for record in records if record.requested_output_tokens != 1]
    first, full = _median(single, latency.e2el), _median(whole, latency.e2el)
    again = _median(whole, latency.ttft)
    return {
        "prefill": _span(single),
        "whole": _span(whole),
        "prefill_ms": first,
        "decode_ms": None if first is None or full is None else full - first,
        "prefix_cache": None if first is None or again is None else again < 0.7 * first,
    }


def _span(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Counts and medians of some requests, and their window on the client's clock, for the energy in it."""
    served = [record for record in records if latency.succeeded(record)]
    tokens = [record.output_tokens for record in served if record.output_tokens is not None]
    ends = [record.end for record in records if record.end is not None]
    start = min((record.scheduled for record in records), default=None)
    window = None if start is None or not ends else (start, max(ends))
    length = window[1] - window[0] if window else 0.0
    return {
        "requests": len(records),
        "served": len(served),
        "window": window,
        "median_ttft_ms": _median(served, latency.ttft),
        "median_tpot_ms": _median(served, latency.tpot),
        "median_e2el_ms": _median(served, latency.e2el),
        "output_throughput": sum(tokens) / length if length > 0 and len(tokens) == len(served) else None,
    }


def _median(records: Sequence[RequestRecord], metric: Any) -> float | None:
    value = percentile([found for record in records if (found := metric(record)) is not None], 50)
    return None if value is None else round(value * 1e3, 4)
