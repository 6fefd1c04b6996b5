"""Result files of `vllm bench serve` and of SGLang's benchmark, which began as a copy of it, as structs.

What has been written under these names since 2024 is read: files without start times (before 0.11), without `max_concurrency` or `failed`; NaN;
several results in one file (`--append-result`, SGLang's lines); and `--metadata` in whatever form it was typed.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from pd_contracts.latency import parse_goodput
from pd_contracts.libraries import plain
from pd_contracts.names import Topology
from pd_contracts.records import MANIFEST, SUMMARY, RecordError

_TELLING: Final = b'"request_throughput"'
_HEAD_BYTES: Final = 1 << 16  # sums come before the arrays, and our own records are large
# Folders of `vllm bench sweep serve`: SERVE--max_num_seqs=32-BENCH--max_concurrency=4/run=0.json, with either part or both.
_SERVED: Final = "SERVE--"
_OFFERED: Final = "BENCH--"
# The file's duration is taken before and after all requests, so that it is never less than they took.
_DURATION_SHARE: Final = 0.01
_Count = Annotated[int, msgspec.Meta(ge=0)]
# 4, 4xL40S, 8 GPUs, A100x4
_GPUS: Final = re.compile(r"\s*(\d+)\s*(?:[x×*].*|gpus?\b.*)?|.*[x×*]\s*(\d+)\s*", re.IGNORECASE)
# What other programs' files are known by, for those who try them.
_OTHERS: Final = (
    ("GuideLLM", ("benchmarks",)),
    ("genai-perf", ("experiments",)),
    ("AIPerf", ("input_config",)),
    ("AIPerf", ("metrics", "metadata")),
    ("LLMPerf", ("results_num_completed_requests",)),
    ("LLMPerf", ("end_to_end_latency_s",)),
    ("inference-perf", ("load_summary",)),
)


class VllmResult(msgspec.Struct, kw_only=True):
    """The keys that are read; arrays have an entry per request, in seconds.

    Attributes:
        completed, failed: what the file itself counts.
        start_times: monotonic seconds; empty in old files.
        topology, gpus, goodput: what vLLM does not know; `--metadata topology=disagg gpus=2 goodput="ttft:200"` carries them.
        remarks: what of the file was not understood, for readers of the run.
    """

    duration: float
    num_prompts: _Count | None = None
    model_id: str = ""
    date: str = ""
    backend: str = ""
    endpoint_type: str = ""
    label: str | None = None
    request_rate: float | str | None = "inf"
    burstiness: float | None = None
    max_concurrency: _Count | None = None
    ramp_up_strategy: str | None = None
    ramp_up_start_rps: float | None = None
    ramp_up_end_rps: float | None = None
    completed: _Count | None = None
    failed: _Count | None = None
    input_lens: list[_Count] = msgspec.field(default_factory=list)
    output_lens: list[_Count] = msgspec.field(default_factory=list)
    ttfts: list[float] = msgspec.field(default_factory=list)
    itls: list[list[float]] = msgspec.field(default_factory=list)
    start_times: list[float] = msgspec.field(default_factory=list)
    errors: list[str | None] = msgspec.field(default_factory=list)
    queue_times: list[float] | None = None
    topology: Topology | None = None
    gpus: _Count | None = None
    goodput: str = ""
    remarks: list[str] = msgspec.field(default_factory=list)

    @property
    def offered_rate(self) -> float | None:
        """Requests per second that were asked for; None if all were due at once (`inf`)."""
        rate = self.ramp_up_end_rps if self.ramp_up_strategy else float(self.request_rate or "inf")
        return None if rate in (None, float("inf")) else rate


def files(path: Path) -> Iterator[Path]:
    """Files below a folder that look like results; our own summaries have their keys and are none."""
    candidates = sorted(each for kind in ("*.json", "*.jsonl") for each in path.rglob(kind))
    return (candidate for candidate in candidates if not _ours(candidate) and _tells(candidate))


def of_sweep(folder: str) -> bool:
    """Whether a folder's name is one of a parameter sweep's."""
    return folder.startswith((_SERVED, _OFFERED))


def server_of(folder: str) -> str:
    """The server's parameters in the name of a parameter sweep's folder; empty without any."""
    return folder.removeprefix(_SERVED).partition(f"-{_OFFERED}")[0] if folder.startswith(_SERVED) else ""


def _ours(path: Path) -> bool:
    """Files that are no results: our own, and a parameter sweep's warm-up."""
    warm_up = path.name == "warmup.json" and any(path.parent.glob("run=*.json"))
    return warm_up or path.name in {MANIFEST, SUMMARY} or (path.parent / MANIFEST).exists()


def _tells(path: Path) -> bool:
    with path.open("rb") as file:
        return _TELLING in file.read(_HEAD_BYTES)


def read(data: bytes) -> list[VllmResult]:
    """All results of a file, in its order.

    Raises:
        RecordError: if it holds none, or one that lacks the arrays or has fewer requests than it says.
    """
    return [_checked(_result(value)) for value in _values(data)]


def _values(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a file, one after the other, with anything of blanks, line ends and commas between them."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        decoder, values, position = json.JSONDecoder(), [], 0
        while rest := text[position:].lstrip(" \t\r\n,"):
            value, used = decoder.raw_decode(rest)
            position = len(text) - len(rest) + used
            values.extend(value if isinstance(value, list) else [value])
    except (ValueError, RecursionError) as error:
        raise RecordError("not a result of vllm bench serve: {reason}", reason=plain(error)) from error
    objects = [value for value in values if isinstance(value, dict)]
    if not objects or len(objects) < len(values):
        raise RecordError("not a result of vllm bench serve: {reason}", reason="it holds no JSON objects")
    return objects


def _result(value: dict[str, Any]) -> VllmResult:
    if "duration" not in value or "ttfts" not in value:
        other = next((name for name, keys in _OTHERS if all(key in value for key in keys)), "")
        if other:
            raise RecordError(
                "a result of {program}, which is not supported; measure with pd-loadgen or with vllm bench serve --save-detailed",
                program=other,
            )
        if "request_throughput" not in value:
            raise RecordError("not a result of vllm bench serve --save-result --save-detailed")
    kept = {name: given for name, given in value.items() if name in VllmResult.__struct_fields__ and given is not None}
    kept.pop("remarks", None)
    remarks = _typed_by_hand(kept)
    try:
        return msgspec.convert({**kept, "remarks": remarks}, VllmResult, strict=False)
    except msgspec.ValidationError as error:
        raise RecordError("not a result of vllm bench serve: {reason}", reason=plain(error)) from error


def _typed_by_hand(kept: dict[str, Any]) -> list[str]:
    """Bring `--metadata` into form; what cannot be understood is left out and remarked upon, and the numbers stay."""
    remarks = []
    if "gpus" in kept and not isinstance(kept["gpus"], int):
        told = kept.pop("gpus")
        if match := _GPUS.fullmatch(str(told)):
            kept["gpus"] = int(match[1] or match[2])
        else:
            remarks.append(f"the metadata gpus={told!s:.60} is not a number of GPUs, so no value is given per GPU")
    if "topology" in kept and str(kept["topology"]) not in set(Topology):
        remarks.append(f"the metadata topology={kept.pop('topology')!s:.60} is neither disagg nor combined")
    if "goodput" in kept:
        try:
            parse_goodput([str(kept["goodput"])])
        except ValueError as error:
            remarks.append(f"the metadata goodput was left out: {error}")
            del kept["goodput"]
    return remarks


def _checked(result: VllmResult) -> VllmResult:
    count = len(result.ttfts)
    arrays = (result.input_lens, result.output_lens, result.itls)
    if not count or any(len(array) != count for array in arrays):
        raise RecordError(
            "holds no single requests, or arrays of different lengths; measure again with --save-detailed"
        )
    if result.start_times and len(result.start_times) != count:
        raise RecordError(
            "holds no single requests, or arrays of different lengths; measure again with --save-detailed"
        )
    if result.num_prompts is not None and count < result.num_prompts:
        raise RecordError(
            "holds {found} of {offered} requests; measure it again", found=count, offered=result.num_prompts
        )
    try:
        rate = result.offered_rate
    except ValueError:
        rate = -1.0
    if not ((rate is None or rate > 0) and result.duration > 0):
        raise RecordError(
            "request_rate {rate} and duration {duration} must be above 0",
            rate=result.request_rate,
            duration=result.duration,
        )
    if result.duration * (1 + _DURATION_SHARE) < (took := _took_s(result)):
        raise RecordError(
            "its requests took {took} s, which is more than its duration of {duration} s; measure it again",
            took=f"{took:.3g}",
            duration=f"{result.duration:.3g}",
        )
    return result


def _took_s(result: VllmResult) -> float:
    """Seconds from the first send to the last token; where the file does not say when requests were sent, those of the longest."""
    lengths = [first + sum(gaps) for first, gaps in zip(result.ttfts, result.itls, strict=True)]
    if not result.start_times:
        return max(lengths)
    begin = min(result.start_times)
    return max(sent - begin + length for sent, length in zip(result.start_times, lengths, strict=True))
