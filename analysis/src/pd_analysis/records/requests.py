"""Read the requests of a run: all of them as columns, and only if they are those that its manifest says."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from pd_analysis.records.collector import Collector
from pd_analysis.records.columns import Requests
from pd_analysis.records.possible import refuse_impossible, refuse_other_rate
from pd_analysis.records.whole import refuse_cut
from pd_contracts import records
from pd_contracts.records import Manifest, RecordError, RequestRecord

_BLOCK: Final = 8 << 20  # bytes of records that are objects at one time
_EXCERPT_GAPS: Final = 100_000  # about as many gaps are kept with their times …
_EXCERPT_S: Final = 20.0  # … of at most this part of a run


def read_requests(path: Path, manifest: Manifest, cut: float) -> Requests:
    """All requests; those that were due before `cut` count as warm-up.

    Raises:
        RecordError: if some are missing, there twice, impossible or not of this load.
    """
    refuse_cut(path)
    collector = Collector(manifest.workload.goodput, cut=cut, excerpt=_excerpt(manifest))
    with _without_collection():
        for batch in _batches(path):
            collector.add(batch)
    requests = collector.finish()
    if requests.rows.empty:
        raise RecordError("{path}: holds no request; measure it again", path=path)
    # Warm-up requests may count from 0 on their own: they are no part of the schedule.
    twice = requests.rows[requests.rows.duplicated(["preheat", "index"])]
    if not twice.empty:
        number = twice["index"].iloc[0]
        raise RecordError(
            "{path}: request {number} is there twice; measure it again into an empty folder", path=path, number=number
        )
    found, told = len(requests.rows), manifest.workload.requests + manifest.workload.warmup_requests
    offered = max(told, int(requests.rows["index"].max()) + 1)
    if found < offered:
        raise RecordError(
            "{path}: holds {found} of {offered} requests; measure it again", path=path, found=found, offered=offered
        )
    if found > told:
        raise RecordError(
            "{path}: holds {found} requests, its manifest says {told}; measure it again",
            path=path,
            found=found,
            told=told,
        )
    refuse_impossible(requests.rows, path)
    refuse_other_rate(requests.rows, manifest.workload, path)
    return requests


def _excerpt(manifest: Manifest) -> tuple[float, float]:
    """The middle of the window, as long as its gaps fit."""
    if manifest.window is None:
        return -np.inf, np.inf
    start, end = manifest.window
    gaps = manifest.workload.requests * (manifest.workload.output_tokens or 1000)
    length = min(_EXCERPT_S, (end - start) * min(1.0, _EXCERPT_GAPS / max(gaps, 1)))
    return (start + end - length) / 2, (start + end + length) / 2


def _batches(path: Path) -> Iterator[list[RequestRecord]]:
    """All records, as many at a time as fit into a block."""
    decoder = msgspec.json.Decoder(RequestRecord)
    rest = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            block = rest + block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            try:
                batch = decoder.decode_lines(block[:end])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                # The slow reader finds the line and gives the error message that all readers of records share.
                yield from ([record] for record in records.read_lines(path, RequestRecord))
                return
            yield batch


@contextmanager
def _without_collection() -> Iterator[None]:
    """Records hold no cycles, and looking for some among millions of chunks takes as long as reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
