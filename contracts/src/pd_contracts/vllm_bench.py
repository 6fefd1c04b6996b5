"""Results of `vllm bench serve --save-result --save-detailed` (`vllm_result`), as the records of a run.

vLLM stamps on a clock without a wall-clock anchor, so such a run cannot be joined with power samples or logs; its anchor here is the
file's date, to the second. 0.33 and later record how long a request waited in the client (`queue_times`): the schedule is that much before
the send. Older files count from the send, and files from before 0.11 do not even say when that was: their requests have latencies, but no place
in time. A chunk is taken as one token, except that the last takes what the count says more.
"""

import math
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from pd_contracts.latency import parse_goodput
from pd_contracts.records import Clock, Deployment, Failure, Manifest, RequestRecord, Workload
from pd_contracts.vllm_result import VllmResult

PROGRAM: Final = "vllm bench serve"
NOTE: Final = "imported from vllm bench serve: times have no wall-clock anchor, output is not hashed"
FROM_SEND: Final = "latencies count from the actual send: the file has no queue_times"
WITHOUT_TIMES: Final = "the file has no start times: durations are known, but not when requests ran"
_PATHS: Final = {
    "openai-chat": "/v1/chat/completions",
    "vllm-chat": "/v1/chat/completions",
    "sglang-oai-chat": "/v1/chat/completions",
    "tgi": "/generate_stream",
    "sglang": "/generate",
    "sglang-native": "/generate",
}
_UNKNOWN_CLOCK: Final = Clock(wall=0.0, monotonic=0.0)


def records(result: VllmResult, run_id: str) -> list[RequestRecord]:
    """One record per request, in the order of the file."""
    return [_record(result, index, run_id) for index in range(len(result.ttfts))]


def manifest(result: VllmResult, made: Sequence[RequestRecord], run_id: str) -> Manifest:
    """What the run was. Whether two such runs had one schedule is unknown, so there is no hash."""
    begin = min(record.scheduled for record in made)
    ended = _wall(result.date)
    return Manifest(
        run_id=run_id,
        created=result.date if ended is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended)),
        clock=_UNKNOWN_CLOCK if ended is None else Clock(wall=ended, monotonic=begin + result.duration),
        deployment=Deployment(
            topology=result.topology,
            label=_label(result),
            gpus=result.gpus,
            software={"measured with": PROGRAM},
        ),
        workload=_workload(result, made),
        schedule_hash="",
        window=(begin, begin + result.duration),
        complete=True,
        notes=[NOTE, *_remarks(result, made)],
    )


def _label(result: VllmResult) -> str:
    """What the deployment was called; vLLM writes the back end's name where nobody gave it a label."""
    return result.label if result.label and result.label not in (result.backend, result.endpoint_type) else ""


def _record(result: VllmResult, index: int, run_id: str) -> RequestRecord:
    sent = result.start_times[index] if result.start_times else 0.0
    count, failure = result.output_lens[index], _failure(result, index)
    times = [] if failure else list(accumulate(result.itls[index], initial=sent + result.ttfts[index]))
    rest = max(0, count - len(times))
    return RequestRecord(
        index=index,
        id=f"{run_id}/r{index}",
        scheduled=sent - (result.queue_times[index] if _has_queue(result) and result.queue_times else 0.0),
        sent=sent if result.start_times else None,
        chunks=[(at, 1 + (rest if number == len(times) else 0)) for number, at in enumerate(times, 1)],
        end=times[-1] if times else None,
        prompt_tokens=result.input_lens[index],
        output_tokens=None if failure else count,
        error=failure,
    )


def _failure(result: VllmResult, index: int) -> Failure | None:
    """A request that failed has an error's text, or no tokens: some files leave the text empty, and vLLM counts no token of a failure."""
    error = (result.errors[index] if index < len(result.errors) else None) or ""
    if error.strip():
        return Failure(kind="error", message=error.strip().splitlines()[-1][:300])
    times = [result.ttfts[index], *result.itls[index]]
    if result.output_lens[index] == 0 or (result.ttfts[index] <= 0 and not result.itls[index]):
        return Failure(kind="error", message="no token came, and the file does not say why")
    if not all(map(math.isfinite, times)):
        return Failure(kind="error", message="its times are not numbers")
    return None


def _has_queue(result: VllmResult) -> bool:
    return bool(result.queue_times) and len(result.queue_times or ()) == len(result.start_times)


def _workload(result: VllmResult, made: Sequence[RequestRecord]) -> Workload:
    rate = result.offered_rate
    arrival = "poisson" if result.burstiness in (None, 1.0) else "gamma"
    if result.ramp_up_strategy:
        arrival = "ramp"
    elif rate is None:
        arrival = "closed" if result.max_concurrency else "batch"
    return Workload(
        dataset=PROGRAM,
        arrival=arrival,
        rate=len(made) / result.duration if rate is None else rate,
        duration_s=result.duration,
        requests=len(made),
        seed=0,
        model=result.model_id,
        burstiness=result.burstiness if rate is not None else None,
        input_tokens=_common(result.input_lens),
        output_tokens=_common(
            [count for count, record in zip(result.output_lens, made, strict=True) if not record.error]
        ),
        endpoint=_PATHS.get(result.backend or result.endpoint_type, "/v1/completions"),
        goodput=parse_goodput([result.goodput]),
        max_concurrency=result.max_concurrency,
        options=_rise(result),
    )


def _rise(result: VllmResult) -> dict[str, str]:
    """How a rate rose, where it did."""
    if not result.ramp_up_strategy:
        return {}
    return {"ramp_up": result.ramp_up_strategy, "start_rate": f"{result.ramp_up_start_rps or 0:g}"}


def _remarks(result: VllmResult, made: Sequence[RequestRecord]) -> list[str]:
    remarks = list(result.remarks)
    if not result.start_times:
        remarks.append(WITHOUT_TIMES)
    elif not _has_queue(result):
        remarks.append(FROM_SEND)
    failed = sum(record.error is not None for record in made)
    told = result.failed if result.failed is not None or result.completed is None else len(made) - result.completed
    if told is not None and told != failed:
        remarks.append(f"the file counts {told} failed requests, its arrays have {failed}")
    return remarks


def _common(lengths: Sequence[int]) -> int | None:
    """The length that all have."""
    return lengths[0] if len(set(lengths)) == 1 else None


def _wall(date: str) -> float | None:
    try:
        return time.mktime(time.strptime(date, "%Y%m%d-%H%M%S"))
    except ValueError:
        return None  # a date of another program's form; the run then has none
