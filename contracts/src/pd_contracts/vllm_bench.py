"""Results of `vllm bench serve --save-result --save-detailed`, as the records of a run.

vLLM stamps on a clock without a wall-clock anchor, so such a run cannot be joined with power samples or logs; its anchor here is the
file's date, to the second. 0.33 and later record how long a request waited in the client (`queue_times`): the schedule is that much before
the send. Older files count from the send. A chunk is taken as one token, except that the last takes what the count says more.
"""

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import msgspec

from pd_contracts.latency import parse_goodput
from pd_contracts.names import Topology
from pd_contracts.records import Clock, Deployment, Failure, Manifest, RecordError, RequestRecord, Workload

PROGRAM: Final = "vllm bench serve"
NOTE: Final = "imported from vllm bench serve: times have no wall-clock anchor, output is not hashed"
FROM_SEND: Final = "latencies count from the actual send: the file has no queue_times"
_PATHS: Final = {"openai-chat": "/v1/chat/completions", "tgi": "/generate_stream", "sglang": "/generate"}
_UNKNOWN_CLOCK: Final = Clock(wall=0.0, monotonic=0.0)


class VllmResult(msgspec.Struct, kw_only=True):
    """The keys that are read; arrays have an entry a request, in seconds.

    Attributes:
        completed, failed: what the file itself counts.
        topology, gpus, goodput: what vLLM does not know; `--metadata topology=disagg gpus=2 goodput="ttft:200"` carries them.
    """

    num_prompts: int
    duration: float
    model_id: str = ""
    date: str = ""
    backend: str = ""
    endpoint_type: str = ""
    label: str | None = None
    request_rate: float | str = "inf"
    burstiness: float | None = None
    max_concurrency: int | None = None
    completed: int | None = None
    failed: int | None = None
    input_lens: list[int] = msgspec.field(default_factory=list)
    output_lens: list[int] = msgspec.field(default_factory=list)
    ttfts: list[float] = msgspec.field(default_factory=list)
    itls: list[list[float]] = msgspec.field(default_factory=list)
    start_times: list[float] = msgspec.field(default_factory=list)
    errors: list[str | None] = msgspec.field(default_factory=list)
    queue_times: list[float] | None = None
    topology: Topology | None = None
    gpus: int | None = None
    goodput: str = ""

    @property
    def offered_rate(self) -> float | None:
        """Requests a second that were asked for; None if all were due at once (`inf`)."""
        rate = float(self.request_rate)
        return None if rate == float("inf") else rate


def read(data: bytes) -> VllmResult:
    """Read a result file.

    Raises:
        RecordError: if it is none, lacks the arrays, or holds fewer requests than it says.
    """
    try:
        result = msgspec.json.decode(data, type=VllmResult, strict=False)
        parse_goodput([result.goodput])
        rate = float(result.request_rate)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise RecordError("no result of vllm bench serve: {reason}", reason=error) from error
    count = len(result.start_times)
    arrays = (result.input_lens, result.output_lens, result.ttfts, result.itls)
    if not count or any(len(array) != count for array in arrays):
        raise RecordError(
            "holds no single requests, or arrays of different lengths; measure again with --save-detailed"
        )
    if count < result.num_prompts:
        raise RecordError(
            "holds {found} of {offered} requests; measure it again", found=count, offered=result.num_prompts
        )
    if not (rate > 0 and result.duration > 0):
        raise RecordError(
            "request_rate {rate} and duration {duration} must be above 0",
            rate=result.request_rate,
            duration=result.duration,
        )
    return result


def records(result: VllmResult, run_id: str) -> list[RequestRecord]:
    """One record a request, in the order of the file."""
    return [_record(result, index, run_id) for index in range(len(result.start_times))]


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
            label=result.label or (result.topology.value if result.topology else ""),
            gpus=result.gpus,
            software={"measured with": PROGRAM},
        ),
        workload=_workload(result, made),
        schedule_hash="",
        window=(begin, begin + result.duration),
        complete=True,
        notes=[NOTE, *_remarks(result, made)],
    )


def _record(result: VllmResult, index: int, run_id: str) -> RequestRecord:
    sent, count = result.start_times[index], result.output_lens[index]
    failure = _failure(result, index)
    times = [] if failure else list(accumulate(result.itls[index], initial=sent + result.ttfts[index]))
    rest = max(0, count - len(times))
    return RequestRecord(
        index=index,
        id=f"{run_id}/r{index}",
        scheduled=sent - (result.queue_times[index] if _has_queue(result) and result.queue_times else 0.0),
        sent=sent,
        chunks=[(at, 1 + (rest if number == len(times) else 0)) for number, at in enumerate(times, 1)],
        end=times[-1] if times else None,
        prompt_tokens=result.input_lens[index],
        output_tokens=None if failure else count,
        error=failure,
    )


def _failure(result: VllmResult, index: int) -> Failure | None:
    """A request that failed has an error's text, or neither a first token nor any other: some files leave the text empty."""
    error = (result.errors[index] if index < len(result.errors) else None) or ""
    if error.strip():
        return Failure(kind="error", message=error.strip().splitlines()[-1][:300])
    if result.ttfts[index] <= 0 and not result.itls[index]:
        return Failure(kind="error", message="no token came, and the file does not say why")
    return None


def _has_queue(result: VllmResult) -> bool:
    return result.queue_times is not None and len(result.queue_times) == len(result.start_times)


def _workload(result: VllmResult, made: Sequence[RequestRecord]) -> Workload:
    rate = result.offered_rate
    arrival = "poisson" if result.burstiness in (None, 1.0) else "gamma"
    if rate is None:
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
    )


def _remarks(result: VllmResult, made: Sequence[RequestRecord]) -> list[str]:
    remarks = [] if _has_queue(result) else [FROM_SEND]
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
