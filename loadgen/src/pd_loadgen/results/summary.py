"""summary.json: the keys of `vllm bench serve --save-result`, with its meaning, and ours under "pdstack".

vLLM counts from the actual send, so its keys do too; "pdstack" counts from the scheduled send. Every definition is
`pd_contracts.latency`'s. What a server did not report (usage) is null, and so is every sum that needs it.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pd_contracts import latency
from pd_contracts.latency import FORMULAS, PERCENTILES, percentile
from pd_contracts.records import Manifest, RequestRecord, Workload
from pd_loadgen.results import request_arrays
from pd_loadgen.workload import modes
from pd_loadgen.workload.schedule import Arrival


@dataclass(frozen=True)
class _Measured:
    """The requests of the window (no warm-ups), and those of them that were served."""

    all: Sequence[RequestRecord]
    served: Sequence[RequestRecord]

    def values(self, metric: Callable[[RequestRecord], float | None]) -> list[float]:
        return [value for record in self.served if (value := metric(record)) is not None]


def summarize(
    manifest: Manifest, records: Sequence[RequestRecord], *, percentiles: Iterable[float] = (), detailed: bool = False
) -> dict[str, Any]:
    """The summary of one run; durations in milliseconds, throughput per second of the measured window.

    Args:
        manifest: of the run; without a window (it was killed) the records' own is taken.
        records: warm-ups among them.
        percentiles: besides those that every summary has.
        detailed: add the arrays of `vllm bench serve --save-detailed`.
    """
    marks = sorted({*PERCENTILES, *percentiles})
    every = [record for record in records if not record.warmup]
    measured = _Measured(every, [record for record in every if latency.succeeded(record)])
    window = manifest.window or _span(every)
    duration = window[1] - window[0] if window else 0.0
    return {
        **_identity(manifest),
        **_totals(measured, duration, manifest.workload.goodput),
        **_peaks(measured, window),
        **_vllm_latencies(measured, marks),
        **(request_arrays.arrays(every) if detailed else {}),
        "pdstack": _ours(manifest, measured, duration, marks),
    }


def _identity(manifest: Manifest) -> dict[str, Any]:
    workload = manifest.workload
    return {
        "date": time.strftime("%Y%m%d-%H%M%S", time.gmtime(manifest.clock.wall)),
        "endpoint_type": _kind_of(workload.endpoint),
        "backend": _kind_of(workload.endpoint),
        "label": manifest.deployment.label or None,
        "model_id": workload.model,
        "tokenizer_id": None,  # nothing is tokenised: counts are the server's
        "num_prompts": workload.requests,
        "request_rate": "inf" if _unpaced(workload) else workload.rate,
        "burstiness": workload.burstiness,
        "max_concurrency": workload.max_concurrency,
    }


def _unpaced(workload: Workload) -> bool:
    """Whether vLLM would call its rate infinite: requests wait for nothing, or only for the concurrency limit."""
    return workload.arrival in (Arrival.CLOSED, modes.Mode.BATCH) and not workload.batch_sizes


def _kind_of(path: str) -> str:
    """vLLM's name for what is spoken."""
    if path.endswith("/chat/completions"):
        return "openai-chat"
    if path.endswith("/generate_stream"):
        return "tensorrt-llm" if "/v2/models/" in path else "tgi"
    return "sglang" if path.endswith("/generate") else "openai"


def _span(records: Sequence[RequestRecord]) -> tuple[float, float] | None:
    """First scheduled send to last end; None of nothing that ended."""
    ends = [record.end for record in records if record.end is not None]
    return (min(record.scheduled for record in records), max(ends)) if ends else None


def _totals(measured: _Measured, duration: float, limits: Mapping[str, float]) -> dict[str, Any]:
    inputs = _sum([record.prompt_tokens for record in measured.served])
    outputs = _sum([record.output_tokens for record in measured.served])
    good = sum(latency.meets(record, limits) for record in measured.all)
    return {
        "duration": duration,
        "completed": len(measured.served),
        "failed": len(measured.all) - len(measured.served),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": _rate(len(measured.served), duration),
        "request_goodput": _rate(good, duration) if limits else None,
        "output_throughput": _rate(outputs, duration),
        "total_token_throughput": _rate(None if inputs is None or outputs is None else inputs + outputs, duration),
    }


def _peaks(measured: _Measured, window: tuple[float, float] | None) -> dict[str, Any]:
    return {
        "max_output_tokens_per_s": _peak_tokens(measured.served, window[0]) if window and measured.served else None,
        "max_concurrent_requests": _peak_concurrency(measured.all),
    }


def _peak_tokens(served: Sequence[RequestRecord], start: float) -> float:
    seconds: Counter[int] = Counter()
    for record in served:
        for at, tokens in record.chunks:
            seconds[int(at - start)] += tokens
    return float(max(seconds.values()))


def _peak_concurrency(records: Sequence[RequestRecord]) -> int:
    begun = [(record.sent, 1) for record in records if record.sent is not None and record.end is not None]
    ended = [(record.end, -1) for record in records if record.sent is not None and record.end is not None]
    running = peak = 0
    for _, step in sorted(begun + ended):  # at one instant an end sorts before a begin
        running += step
        peak = max(peak, running)
    return peak


def _vllm_latencies(measured: _Measured, marks: Sequence[float]) -> dict[str, float | None]:
    values = {
        "ttft": measured.values(latency.ttft_from_send),
        "tpot": measured.values(latency.tpot),
        "itl": [gap for record in measured.served for gap in latency.itl(record)],
        "e2el": measured.values(_e2el_from_send),
    }
    return {key: number for name, seconds in values.items() for key, number in _spread(name, seconds, marks).items()}


def _spread(name: str, seconds: Sequence[float], marks: Sequence[float]) -> dict[str, float | None]:
    return {
        f"mean_{name}_ms": _ms(statistics.fmean(seconds) if seconds else None),
        f"median_{name}_ms": _ms(percentile(seconds, 50)),
        f"std_{name}_ms": _ms(statistics.pstdev(seconds) if seconds else None),
        **{f"p{q:g}_{name}_ms": _ms(percentile(seconds, q)) for q in marks},
    }


def _e2el_from_send(record: RequestRecord) -> float | None:
    whole = latency.e2el(record)
    return None if whole is None or record.sent is None else whole - (record.sent - record.scheduled)


def _ours(manifest: Manifest, measured: _Measured, duration: float, marks: Sequence[float]) -> dict[str, Any]:
    limits = manifest.workload.goodput
    every = len(measured.all)
    return {
        "schema_version": manifest.schema_version,
        "run_id": manifest.run_id,
        "schedule_hash": manifest.schedule_hash,
        "complete": manifest.complete,
        "client_valid": manifest.client.valid if manifest.client else None,
        "simulated": manifest.deployment.simulated,
        "scheduled": manifest.workload.requests,
        "sent_rate": _rate(sum(record.sent is not None for record in measured.all), manifest.workload.duration_s),
        "latencies_ms": _latencies(measured, marks),
        "goodput_limits_ms": limits,
        "attainment": _attainment(measured, limits) if limits and every else None,
        "failures": Counter(_kind(record) for record in measured.all if not latency.succeeded(record)),
        "gpus": manifest.deployment.gpus,
        "per_gpu": _per_gpu(measured, duration, manifest.deployment.gpus),
        "formulas": FORMULAS,
        **_groups(manifest, measured),
    }


def _groups(manifest: Manifest, measured: _Measured) -> dict[str, Any]:
    """The results that only the modes batch and phase-split have."""
    if manifest.workload.batch_sizes:
        return {"batches": modes.batches(measured.all, manifest.workload.batch_sizes)}
    return {"phases": modes.phases(measured.all)} if manifest.workload.arrival == modes.Mode.PHASE_SPLIT else {}


def _latencies(measured: _Measured, marks: Sequence[float]) -> dict[str, dict[str, float | None]]:
    values = {
        "TTFT": measured.values(latency.ttft),
        "TPOT": measured.values(latency.tpot),
        "ITL": [gap for record in measured.served for gap in latency.itl(record)],
        "E2EL": measured.values(latency.e2el),
    }
    return {name: {f"p{q:g}": _ms(percentile(seconds, q)) for q in marks} for name, seconds in values.items()}


def _attainment(measured: _Measured, limits: Mapping[str, float]) -> dict[str, float]:
    """Share of all requests, failures among them, that meet each limit and all of them."""
    parts = {**{key: {key: value} for key, value in limits.items()}, "all": dict(limits)}
    return {
        name: sum(latency.meets(record, part) for record in measured.all) / len(measured.all)
        for name, part in parts.items()
    }


def _per_gpu(measured: _Measured, duration: float, gpus: int | None) -> dict[str, float | None] | None:
    if not gpus:
        return None
    outputs = _sum([record.output_tokens for record in measured.served])
    return {
        "request_throughput": _rate(len(measured.served) / gpus, duration),
        "output_throughput": _rate(None if outputs is None else outputs / gpus, duration),
    }


def _kind(record: RequestRecord) -> str:
    return record.error.kind if record.error else "protocol"


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _rate(amount: float | None, duration: float) -> float | None:
    return amount / duration if amount is not None and duration > 0 else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 4)
