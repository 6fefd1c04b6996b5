"""A recording by role: what `prefill_gpu_data.json` and `decode_gpu_data.json` hold.

One JSON object with the samples of the GPUs of that role, on the wall's clock too, and their energy by the counter. It is made
piece by piece, because a recording may be larger than memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.names import Role
from pd_contracts.plausible import EDGE_INTERVALS
from pd_contracts.records import SCHEMA_VERSION, GpuHeader, GpuSample
from pd_monitor.plausibility import Plausibility

_SAMPLES_A_PIECE: Final = 500

_encoder = msgspec.json.Encoder()
_samples = msgspec.json.Decoder(GpuSample)


def file_name(role: Role) -> str:
    """What the file of a role is called."""
    return f"{role.value}_gpu_data.json"


def write_role_files(recording: Path, out: Path) -> list[Path]:
    """Write the file of each role that the recording has; the files.

    Raises:
        OSError, msgspec.MsgspecError: if the recording cannot be read.
    """
    with recording.open("rb") as lines:
        header = msgspec.json.decode(next(lines, b""), type=GpuHeader)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for role in sorted({gpu.role for gpu in header.gpus if gpu.role is not None}):
        path = out / file_name(role)
        with recording.open("rb") as lines, path.open("wb") as file:
            file.writelines(role_file((line for line in lines if line.endswith(b"\n")), role))
        written.append(path)
    return written


def role_file(lines: Iterable[bytes], role: Role) -> Iterator[bytes]:
    """The file of a role, in pieces, from the lines of a gpu.jsonl.

    Raises:
        msgspec.MsgspecError: for a line that does not belong to a recording.
    """
    lines = iter(lines)
    header = msgspec.json.decode(next(lines), type=GpuHeader)
    yield _head(header, role)
    counters = {gpu.index: _Counted(gpu.power_limit_w) for gpu in header.gpus}
    pending: list[bytes] = []
    comma = b""
    for line in lines:
        sample = _samples.decode(line)
        if sample.role is not role:
            continue
        counters.setdefault(sample.index, _Counted(None)).add(sample)
        pending.append(comma + _encoder.encode(_sample(sample, header)))
        comma = b",\n"
        if len(pending) == _SAMPLES_A_PIECE:
            yield b"".join(pending)
            pending.clear()
    yield b"".join(pending) + _tail(counters, header.interval_s)


def _head(header: GpuHeader, role: Role) -> bytes:
    about = {
        "schema_version": SCHEMA_VERSION,
        "role": role,
        "clock": header.clock,
        "backend": header.backend,
        "simulated": header.simulated,
        "interval_s": header.interval_s,
        "gpus": [gpu for gpu in header.gpus if gpu.role is role],
    }
    return _encoder.encode(about)[:-1] + b',"samples":[\n'


def _sample(sample: GpuSample, header: GpuHeader) -> dict[str, Any]:
    wall = header.clock.wall + sample.t - header.clock.monotonic
    return {"timestamp": round(wall, 6), **msgspec.to_builtins(sample)}


def _tail(counters: Mapping[int, "_Counted"], interval_s: float) -> bytes:
    """The counters' differences, with the reason where one is not known."""
    found = {str(index): counter for index, counter in counters.items() if counter.first is not None}
    joules = {index: counter.joules(interval_s) for index, counter in found.items()}
    unknown = {index: reason for index, counter in found.items() if (reason := counter.doubt(interval_s))}
    known = [value for value in joules.values() if value is not None]
    total = sum(known) if known and len(known) == len(joules) else None
    parts = {"energy_j_by_gpu": joules, "energy_j": total, "energy_unknown": unknown}
    return b"\n]," + _encoder.encode(parts)[1:] + b"\n"


@dataclass(slots=True)
class _Counted:
    """One board's energy counter over a recording: whether its difference is the energy of all of it."""

    limit_w: float | None
    first: GpuSample | None = None
    last: GpuSample | None = None
    first_counted: GpuSample | None = None
    last_counted: GpuSample | None = None
    fault: str = ""
    plausibility: Plausibility = field(default_factory=Plausibility)

    def add(self, sample: GpuSample) -> None:
        self.first, self.last = self.first or sample, sample
        if sample.energy_mj is None:
            return
        self.first_counted, self.last_counted = self.first_counted or sample, sample
        self.fault = self.fault or self.plausibility.doubts(sample, self.limit_w).get("energy_mj", "")

    def doubt(self, interval_s: float) -> str:
        """Why its energy is unknown; empty if it is known."""
        if self.first is None or self.last is None or self.first_counted is None or self.last_counted is None:
            return "the board tells no energy"
        missing = max(self.first_counted.t - self.first.t, self.last.t - self.last_counted.t)
        if missing > EDGE_INTERVALS * interval_s:
            return f"the counter could not be read for {missing:.1f} s at an end of the recording"
        return self.fault

    def joules(self, interval_s: float) -> float | None:
        if self.doubt(interval_s) or self.first_counted is None or self.last_counted is None:
            return None
        return ((self.last_counted.energy_mj or 0.0) - (self.first_counted.energy_mj or 0.0)) / 1e3
