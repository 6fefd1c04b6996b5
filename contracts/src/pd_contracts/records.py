"""A run on disk: raw records, from which every number is derived later.

A run is a folder: `manifest.json`, `requests.jsonl` (one line per request), `gpu.jsonl` (a header line, then one line per sample)
and `summary.json`. Times are seconds on the writing process's monotonic clock unless a name says otherwise; each file's
`Clock` ties that clock to the wall. What is unknown is null, never 0. Files are written so that a kill loses the last line at most.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from pd_contracts.amounts import Count, Number
from pd_contracts.boot import boot_id
from pd_contracts.deployment import manner_of
from pd_contracts.libraries import plain
from pd_contracts.names import Connector, Role, Topology
from pd_contracts.sentences import SentenceError
from pd_contracts.timing import Stages

# Format history, newest first.
# 1: first format.
SCHEMA_VERSION: Final = 1

MANIFEST: Final = "manifest.json"
REQUESTS: Final = "requests.jsonl"
GPU: Final = "gpu.jsonl"
SUMMARY: Final = "summary.json"
NOT_MEASURED: Final = "not-measured.json"


# A simulated step that ends this late shows a busy host: steps of a large model take 5 to 50 ms.
LATE_STEP_S: Final = 0.005


class RecordError(SentenceError, ValueError):
    """A run cannot be read; the text names the file, the line and the remedy."""


class Clock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same instant on both clocks: seconds since the epoch, and monotonic seconds of the writing host.

    Attributes:
        boot: equal for processes that share the monotonic clock; empty if unknown.
    """

    wall: Number
    monotonic: Number
    boot: str = ""

    @classmethod
    def now(cls) -> "Clock":
        """Read both clocks, close together."""
        return cls(wall=time.time(), monotonic=time.monotonic(), boot=boot_id())


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed. `kind` is one of connect, timeout, status, truncated, protocol, stream_error, aborted."""

    kind: str
    message: str


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the client saw it.

    Attributes:
        index: position in the schedule, from 0.
        id: unique in the run.
        warmup: true for requests before the measured window; they are never part of a number.
        scheduled: when the schedule wanted it sent.
        sent: when its first byte was handed to the socket; None if that never happened.
        headers: when the status line had come.
        first_byte: when the first body byte was read.
        chunks: (time, tokens) of each chunk that carried tokens; a role-only, an empty or a usage chunk is none. Tokens are counted
            from token ids or from each chunk's usage where the server sends them; else the answer's usage is shared out by text.
        end: when the stream ended or failed.
        prompt_tokens, output_tokens: from the server's usage; None if it sent none.
        requested_output_tokens: max_tokens of the request.
        error: None for a success.
        stages: the proxy's timing, where asked for.
        output_hash: SHA-256 over the output's token ids or, without them, its text; equal hashes mean equal output.
    """

    index: Count
    id: str
    scheduled: Number
    sent: Number | None = None
    headers: Number | None = None
    first_byte: Number | None = None
    chunks: list[tuple[Number, Count]] = msgspec.field(default_factory=list)
    end: Number | None = None
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    requested_output_tokens: Count | None = None
    finish_reason: str | None = None
    status: int | None = None
    error: Failure | None = None
    stages: Stages | None = None
    output_hash: str | None = None
    warmup: bool = False


class GpuInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A board, as found at the start of a recording."""

    index: Count
    name: str
    uuid: str = ""
    role: Role | None = None
    instance: str = ""
    power_limit_w: Number | None = None
    driver: str = ""
    memory_bytes: int | None = None


class GpuHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First line of gpu.jsonl."""

    clock: Clock
    backend: str
    simulated: bool
    interval_s: Number
    gpus: list[GpuInfo]
    schema_version: int = SCHEMA_VERSION


class EngineTokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An engine's token counters at one moment, as its /metrics reported them; only differences mean something. None: not reported.

    Attributes:
        t: monotonic seconds, when they were read.
        name: role and number, the same in every reading of a recording.
        prompt: prompt tokens of the requests that it took (vllm:prompt_tokens_total).
        computed: those of them that it computed itself (vllm:prompt_tokens_by_source_total, source local_compute).
        cache_hits: prompt tokens that its prefix cache had (vllm:prefix_cache_hits_total).
        external_hits: those that a KV connector had (vllm:external_prefix_cache_hits_total).
        output: tokens that it made (vllm:generation_tokens_total); a prefill engine's one per request is not output.
        steps, late_steps: of a simulated engine, its steps, and those that ended more than `LATE_STEP_S` late because its process lacked CPU time.
        error: why there are none; empty if there are.
    """

    t: Number
    name: str
    role: Role
    prompt: Number | None = None
    computed: Number | None = None
    cache_hits: Number | None = None
    external_hits: Number | None = None
    output: Number | None = None
    steps: Number | None = None
    late_steps: Number | None = None
    error: str = ""


class GpuSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One board at one moment; a reading that failed is absent and named in `errors` with the reason.

    Attributes:
        t: monotonic seconds, when the reading was complete.
        power_w: instantaneous power (NVML field 186).
        power_average_w: the board's own average (NVML field 185, about 1 s on Ampere and later).
        energy_mj: the board's energy counter in millijoules; only differences mean something.
        utilization: share of the last sample period with a kernel running, 0 to 1.
        throttle_reasons: NVML clock-event bits.
        engines: the engines' token counters, in the first sample after they were read.
    """

    t: Number
    index: Count
    role: Role | None = None
    power_w: Number | None = None
    power_average_w: Number | None = None
    energy_mj: Number | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    utilization: Number | None = None
    memory_utilization: Number | None = None
    temperature_c: Number | None = None
    memory_used_bytes: int | None = None
    throttle_reasons: Count | None = None
    errors: dict[str, str] = msgspec.field(default_factory=dict)
    engines: tuple[EngineTokens, ...] = ()


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine of the deployment; unknown fields are empty.

    Attributes:
        name: the proxy's name for it, as in a request's stages.
        gpus: numbers of its GPUs, as the monitor counts them.
        gpu_uuids: the same GPUs by UUID.
        versions: of torch, driver and connector, by name.
        transport: the way that KV takes, where the connector has several.
    """

    name: str
    role: Role
    engine: str = ""
    version: str = ""
    model: str = ""
    connector: Connector | None = None
    image: str = ""
    image_digest: str = ""
    gpus: list[Count] = msgspec.field(default_factory=list)
    gpu_uuids: list[str] = msgspec.field(default_factory=list)
    gpu_model: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    transport: str = ""


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the client kept up; a late client makes a run invalid, whatever its numbers.

    Attributes:
        dispatch_lag_ms: percentile name to send time minus scheduled time.
        receive_lag_ms: percentile name to how late the client looked at a socket that was ready.
        stamps: whose clock reading a chunk's time is: "kernel" (taken as the packet came) or "process" (taken after the read).
        cpu_fraction: CPU seconds of the client processes per second of the window and process.
        remedy: what to do about it; empty when valid.
    """

    valid: bool
    dispatch_lag_ms: dict[str, float]
    receive_lag_ms: dict[str, float]
    cpu_fraction: float | None = None
    limit_ms: float = 0.0
    stamps: str = ""
    remedy: str = ""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The offered load. Rates are requests per second over the whole deployment.

    Where answers set the pace (arrival closed, batch or phase-split), rate and duration are what came of it, and 0 until the end.

    Attributes:
        arrival: how requests follow each other; "batch" without `batch_sizes` is all at once.
        input_spread, output_spread: median and p95 of lengths that vary, where they are known before the start; else empty.
        options: everything else that makes the load, by the load generator's name of it (temperature, prefix_tokens, trace, …); what is at its
            default is left out. Two loads are the same only if these are equal too.
    """

    dataset: str
    arrival: str
    rate: Number
    duration_s: Number
    requests: Count
    seed: int
    model: str = ""
    burstiness: Number | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_spread: list[Count] = msgspec.field(default_factory=list)
    output_spread: list[Count] = msgspec.field(default_factory=list)
    endpoint: str = "/v1/completions"
    goodput: dict[str, float] = msgspec.field(default_factory=dict)
    warmup_requests: Count = 0
    max_concurrency: Count | None = None
    batch_sizes: list[Count] = msgspec.field(default_factory=list)
    options: dict[str, str] = msgspec.field(default_factory=dict)


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The deployment that served the load. Numbers per GPU are divided by `gpus`; `name` is its identity.

    Attributes:
        settings: those of the proxy that decide how requests are served, by variable, where they are not the defaults.
    """

    name: str = ""
    topology: Topology | None = None
    label: str = ""
    gpus: Count | None = None
    engines: list[EngineInfo] = msgspec.field(default_factory=list)
    simulated: bool = False
    software: dict[str, str] = msgspec.field(default_factory=dict)
    settings: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def both_roles(self) -> bool:
        """Whether its combined engines can also hand KV over (KV_BOTH=on); otherwise they have no connector."""
        return any(engine.role is Role.COMBINED and engine.connector is not None for engine in self.engines)

    @property
    def manner(self) -> str:
        """`manner_of` its engines."""
        combined = any(engine.role is Role.COMBINED for engine in self.engines)
        return manner_of(routing=self.settings.get("ROUTING", ""), both_roles=self.both_roles) if combined else ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a run. `window` is the measured window on the client's monotonic clock: first scheduled send to last end."""

    run_id: str
    created: str
    clock: Clock
    deployment: Deployment
    workload: Workload
    schedule_hash: str
    schema_version: int = SCHEMA_VERSION
    window: tuple[Number, Number] | None = None
    client: ClientHealth | None = None
    complete: bool = False
    title: str = ""
    command: list[str] = msgspec.field(default_factory=list)
    host: dict[str, str] = msgspec.field(default_factory=dict)
    url: str = ""
    notes: list[str] = msgspec.field(default_factory=list)


class NotMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a comparison that has no records: what it is, and why, in a sentence for the report."""

    what: str
    reason: str


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """`not-measured.json`, beside the run folders of a comparison."""

    parts: list[NotMeasured]
    schema_version: int = SCHEMA_VERSION


T = TypeVar("T")
_encoder = msgspec.json.Encoder()
# For text that is not UTF-8, and for endless nesting, msgspec raises Python's own errors.
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode_line(record: msgspec.Struct) -> bytes:
    """One JSONL line with its line end."""
    return _encoder.encode(record) + b"\n"


def append_lines(path: Path, records: Iterable[msgspec.Struct]) -> None:
    """Append records in one write, so that a kill loses a line at most."""
    data = b"".join(map(encode_line, records))
    if data:
        with path.open("ab", buffering=0) as file:
            file.write(data)


def read_lines(path: Path, type_: type[T], *, skip: int = 0) -> Iterator[T]:
    """Read JSONL records after the first `skip` lines; a last line without its line end (the writer was killed) is left out.

    Raises:
        RecordError: if a whole line is not a record of this type; the message names file and line.
    """
    decoder = msgspec.json.Decoder(type_)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number <= skip or not line.endswith(b"\n"):
                continue
            try:
                yield decoder.decode(line)
            except _UNREADABLE as error:
                raise RecordError("{path}:{number}: {reason}", path=path, number=number, reason=plain(error)) from error


def write_json(path: Path, record: Any) -> None:
    """Write a whole JSON file by rename, so that readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.format(_encoder.encode(record), indent=2) + b"\n")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, do not leave half a file
        raise


def read_json(path: Path, type_: type[T]) -> T:
    """Read a whole JSON file.

    Raises:
        RecordError: if it is missing, is not JSON, is of another type, or has a schema that this version does not read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError("{path}: {reason}", path=path, reason=plain(error)) from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > SCHEMA_VERSION:
            raise RecordError(
                "{path}: schema version {version} is newer than {known}; update pdstack to read it",
                path=path,
                version=version,
                known=SCHEMA_VERSION,
            )
        return msgspec.json.decode(data, type=type_)
    except _UNREADABLE as error:
        raise RecordError("{path}: {reason}", path=path, reason=plain(error)) from error


class _Versioned(msgspec.Struct):
    schema_version: int = SCHEMA_VERSION


def schedule_hash(parts: Iterable[tuple[float, int, int]], seed: int, prompts: Iterable[bytes] = ()) -> str:
    """Fingerprint of a schedule: (offset in s, input tokens, output tokens) of each request, the prompts' seed, and the prompts."""
    digest = hashlib.sha256(str(seed).encode())
    for offset, inputs, outputs in parts:
        digest.update(f"{offset:.6f},{inputs},{outputs};".encode())
    for prompt in prompts:
        digest.update(prompt + b";")
    return digest.hexdigest()[:16]
