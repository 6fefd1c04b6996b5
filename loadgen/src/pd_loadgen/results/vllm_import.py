"""Results of `vllm bench serve --save-result --save-detailed` as a run folder's records. Pure.

vLLM stamps on a clock without a wall-clock anchor, so such a run cannot be joined with power samples or logs; the anchor here is
the file's date, to the second. Its chunks are taken as one token each, except that the last takes what the count says more.
"""

import time
from itertools import accumulate
from typing import Any

import msgspec

from pd_contracts.records import Clock, Deployment, Failure, Manifest, RequestRecord, Workload, schedule_hash

_PATHS = {"openai-chat": "/v1/chat/completions", "tgi": "/generate_stream", "sglang": "/generate"}
NOTE = "imported from vllm bench serve: times have no wall-clock anchor, output is not hashed"


class ForeignError(ValueError):
    """The file is no such result; the message is one sentence."""


class VllmResult(msgspec.Struct, kw_only=True):
    """The keys that are read; arrays have an entry a request, in seconds."""

    date: str
    model_id: str
    num_prompts: int
    duration: float
    request_rate: float | str = "inf"
    burstiness: float | None = None
    max_concurrency: int | None = None
    backend: str = "openai"
    label: str | None = None
    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float]
    itls: list[list[float]]
    start_times: list[float]
    errors: list[str | None]
    queue_times: list[float] | None = None


def read(data: bytes) -> VllmResult:
    """Read a result file.

    Raises:
        ForeignError: if it is none, or lacks the arrays.
    """
    try:
        result = msgspec.json.decode(data, type=VllmResult)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = f"no result of vllm bench serve with --save-detailed: {error}"
        raise ForeignError(msg) from error
    arrays = (result.input_lens, result.output_lens, result.ttfts, result.itls, result.errors)
    if not result.start_times or any(len(array) != len(result.start_times) for array in arrays):
        msg = "the arrays are empty or have different lengths"
        raise ForeignError(msg)
    return result


def records(result: VllmResult, run_id: str) -> list[RequestRecord]:
    """One record a request. With 0.33's `queue_times`, the schedule is that much before the send."""
    return [_record(result, index, run_id) for index in range(len(result.start_times))]


def manifest(result: VllmResult, made: list[RequestRecord], run_id: str, **given: Any) -> Manifest:
    """The manifest of an imported run; `given` sets fields of its deployment."""
    begin = min(record.scheduled for record in made)
    rate = result.request_rate if isinstance(result.request_rate, float) else 0.0
    ended = _wall(result.date)
    return Manifest(
        run_id=run_id,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended)),
        clock=Clock(wall=ended, monotonic=begin + result.duration),
        deployment=Deployment(**{"label": result.label or "", **given}),
        workload=Workload(
            dataset="imported",
            arrival=_arrival(result),
            rate=rate or len(made) / result.duration,
            duration_s=result.duration,
            requests=result.num_prompts,
            seed=0,
            model=result.model_id,
            burstiness=result.burstiness,
            endpoint=_PATHS.get(result.backend, "/v1/completions"),
            max_concurrency=result.max_concurrency,
        ),
        schedule_hash=_hash(made, begin),
        window=(begin, begin + result.duration),
        complete=True,
        notes=[NOTE],
    )


def _record(result: VllmResult, index: int, run_id: str) -> RequestRecord:
    sent, error = result.start_times[index], result.errors[index]
    count, waited = result.output_lens[index], result.queue_times[index] if result.queue_times else 0.0
    times = [] if error else list(accumulate(result.itls[index], initial=sent + result.ttfts[index]))
    rest = max(0, count - len(times))
    chunks = [(at, 1 + (rest if number == len(times) else 0)) for number, at in enumerate(times, 1)]
    return RequestRecord(
        index=index,
        id=f"{run_id}/r{index}",
        scheduled=sent - waited,
        sent=sent,
        chunks=chunks,
        end=times[-1] if times else None,
        prompt_tokens=result.input_lens[index],
        output_tokens=None if error else count,
        error=Failure(kind="protocol", message=error.strip().splitlines()[-1][:300]) if error else None,
    )


def _arrival(result: VllmResult) -> str:
    if not isinstance(result.request_rate, float):
        return "closed" if result.max_concurrency else "batch"
    return "poisson" if result.burstiness in (None, 1.0) else "gamma"


def _hash(made: list[RequestRecord], begin: float) -> str:
    parts = [(record.scheduled - begin, record.prompt_tokens or 0, record.output_tokens or 0) for record in made]
    return schedule_hash(parts, 0, [b"imported"])


def _wall(date: str) -> float:
    try:
        return time.mktime(time.strptime(date, "%Y%m%d-%H%M%S"))
    except ValueError as error:
        msg = f"date {date!r} is not of the form YYYYMMDD-HHMMSS"
        raise ForeignError(msg) from error
