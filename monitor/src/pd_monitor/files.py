"""A recording by role: what `prefill_gpu_data.json` and `decode_gpu_data.json` hold.

One JSON object with the samples of the GPUs of that role, on the wall's clock too, and their energy by the counter. It is made
piece by piece, because a recording may be larger than memory.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.names import Role
from pd_contracts.records import SCHEMA_VERSION, GpuHeader, GpuSample

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
        msgspec.MsgspecError: for a line that is none of a recording.
    """
    lines = iter(lines)
    header = msgspec.json.decode(next(lines), type=GpuHeader)
    yield _head(header, role)
    edges: dict[int, list[float]] = {}
    pending: list[bytes] = []
    comma = b""
    for line in lines:
        sample = _samples.decode(line)
        if sample.role is not role:
            continue
        if sample.energy_mj is not None:
            edge = edges.setdefault(sample.index, [sample.energy_mj, sample.energy_mj])
            edge[1] = sample.energy_mj
        pending.append(comma + _encoder.encode(_sample(sample, header)))
        comma = b",\n"
        if len(pending) == _SAMPLES_A_PIECE:
            yield b"".join(pending)
            pending.clear()
    yield b"".join(pending) + _tail(edges)


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


def _tail(edges: dict[int, list[float]]) -> bytes:
    """The counters' differences; one that went back (the driver was restarted) makes the energy unknown."""
    joules = {str(index): (last - first) / 1e3 if last >= first else None for index, (first, last) in edges.items()}
    known = [value for value in joules.values() if value is not None]
    total = sum(known) if known and len(known) == len(joules) else None
    return b'\n],"energy_j_by_gpu":' + _encoder.encode(joules) + b',"energy_j":' + _encoder.encode(total) + b"}\n"
