"""Results of `vllm bench serve --save-result --save-detailed`, read as runs.

Its clock starts at the actual send, so that queueing in the client is not in its latencies; its gaps are between chunks, as ours. It
knows no topology, GPUs or limits: `--metadata topology=disagg gpus=2 label="1P1D"` and `goodput="ttft:200 tpot:50"` carry them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import msgspec
import pandas as pd

from pd_analysis.records.columns import requests_of
from pd_analysis.records.run import RefusedError, Run
from pd_contracts.latency import parse_goodput
from pd_contracts.names import Topology
from pd_contracts.records import (
    MANIFEST,
    SUMMARY,
    Clock,
    Deployment,
    Failure,
    Manifest,
    RecordError,
    RequestRecord,
    Workload,
)

SOFTWARE: Final = "vllm bench serve"
_TELLING: Final = (b'"request_throughput"', b'"num_prompts"')
_UNKNOWN_CLOCK: Final = Clock(wall=0.0, monotonic=0.0)


class Result(msgspec.Struct, kw_only=True):
    """The keys that are used; 0.23 and later write them all with --save-detailed."""

    num_prompts: int
    duration: float
    model_id: str = ""
    date: str = ""
    endpoint_type: str = ""
    label: str | None = None
    request_rate: float | str = "inf"
    burstiness: float = 1.0
    input_lens: list[int] = msgspec.field(default_factory=list)
    output_lens: list[int] = msgspec.field(default_factory=list)
    ttfts: list[float] = msgspec.field(default_factory=list)
    itls: list[list[float]] = msgspec.field(default_factory=list)
    start_times: list[float] = msgspec.field(default_factory=list)
    errors: list[str | None] = msgspec.field(default_factory=list)
    topology: Topology | None = None
    gpus: int | None = None
    goodput: str = ""


def files(path: Path) -> Iterator[Path]:
    """JSON files at or below `path` that look like its results; our own summaries have its keys and are none."""
    candidates = [path] if path.is_file() else sorted(path.rglob("*.json"))
    for candidate in candidates:
        ours = candidate.name in {MANIFEST, SUMMARY} or (candidate.parent / MANIFEST).exists()
        if candidate.suffix == ".json" and not ours and all(key in candidate.read_bytes() for key in _TELLING):
            yield candidate


def read(path: Path, cut_s: float = 0.0) -> Run:
    """Read one result.

    Raises:
        RecordError: if it is broken, or holds sums instead of requests.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result, strict=False)
        limits = parse_goodput([result.goodput])
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        msg = f"{path}: {error}"
        raise RecordError(msg) from error
    count = len(result.start_times)
    if not count or {len(each) for each in (result.ttfts, result.itls, result.input_lens, result.output_lens)} != {
        count
    }:
        raise RefusedError("{path}: holds no single requests; measure again with --save-detailed", path=path)
    if count < result.num_prompts:
        raise RefusedError(
            "{path}: holds {found} of {offered} requests; measure it again",
            path=path,
            found=count,
            offered=result.num_prompts,
        )
    requests = [_record(result, index) for index in range(count)]
    window = min(result.start_times), max(record.end or record.scheduled for record in requests)
    return Run(
        path=path,
        manifest=_manifest(path, result, limits, window),
        requests=requests_of(requests, limits, cut=window[0] + cut_s),
        gpu=None,
        samples=pd.DataFrame(),
        cut_s=cut_s,
    )


def _record(result: Result, index: int) -> RequestRecord:
    sent = result.start_times[index]
    error = result.errors[index] if index < len(result.errors) else None
    times = [] if error else list(accumulate(result.itls[index], initial=sent + result.ttfts[index]))
    return RequestRecord(
        index=index,
        id=str(index),
        scheduled=sent,
        sent=sent,
        chunks=[(time, 1) for time in times],
        end=times[-1] if times else None,
        prompt_tokens=None if error else result.input_lens[index],
        output_tokens=None if error else result.output_lens[index],
        error=Failure(kind="error", message=error.strip().splitlines()[-1]) if error and error.strip() else None,
    )


def _manifest(path: Path, result: Result, limits: dict[str, float], window: tuple[float, float]) -> Manifest:
    return Manifest(
        run_id=path.stem,
        created=result.date,
        clock=_UNKNOWN_CLOCK,
        deployment=Deployment(
            topology=result.topology,
            label=result.label or (result.topology.value if result.topology else path.stem),
            gpus=result.gpus,
            software={"measured with": SOFTWARE},
        ),
        workload=_workload(result, limits),
        schedule_hash="",
        window=window,
        complete=True,
        notes=["latencies count from the actual send"],
    )


def _workload(result: Result, limits: dict[str, float]) -> Workload:
    return Workload(
        dataset=SOFTWARE,
        arrival="poisson" if result.burstiness == 1 else "gamma",
        rate=float(result.request_rate),
        duration_s=result.duration,
        requests=len(result.start_times),
        seed=0,
        model=result.model_id,
        burstiness=result.burstiness,
        input_tokens=_common(result.input_lens),
        output_tokens=_common(result.output_lens),
        endpoint=result.endpoint_type,
        goodput=limits,
    )


def _common(lengths: Sequence[Any]) -> int | None:
    """The length that all have."""
    return lengths[0] if len(set(lengths)) == 1 else None
