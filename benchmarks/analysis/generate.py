# ruff: noqa: INP001 - scripts, not a package
"""Write run folders of any size, with the shapes that two GPUs show, for benchmarks: random, seeded, one line at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pd_contracts.names import SIMULATED_ENGINE, Role, Topology
from pd_contracts.records import (
    GPU,
    MANIFEST,
    REQUESTS,
    ClientHealth,
    Clock,
    Deployment,
    EngineInfo,
    GpuHeader,
    GpuInfo,
    GpuSample,
    Manifest,
    RequestRecord,
    Workload,
    append_lines,
    encode_line,
    write_json,
)
from pd_contracts.timing import Stages

RATE = 200.0
_AT_ONCE = 2_000
_CLOCK = Clock(wall=1_760_000_000.0, monotonic=0.0)


def write_run(folder: Path, *, requests: int, chunks: int, topology: Topology = Topology.DISAGG, seed: int = 1) -> Path:
    """A complete simulated run of `requests` requests of `chunks` chunks each; about 25 bytes per chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    last = 0.0
    with (folder / REQUESTS).open("wb") as file:
        for start in range(0, requests, _AT_ONCE):
            for record in _records(rng, start, min(_AT_ONCE, requests - start), chunks, topology):
                last = max(last, record.end or 0.0)
                file.write(encode_line(record))
    write_json(folder / MANIFEST, _manifest(topology, requests, chunks, last))
    append_lines(folder / GPU, _power(topology, last))
    return folder


def _records(
    rng: np.random.Generator, start: int, count: int, chunks: int, topology: Topology
) -> Iterator[RequestRecord]:
    disagg = topology is Topology.DISAGG
    due = (start + np.arange(count)) / RATE
    ttft = 0.03 + rng.gamma(2.0, 0.03 if disagg else 0.02, count)
    gaps = rng.gamma(60.0, 0.0078 / 60, (count, chunks - 1))
    if not disagg:
        gaps += (rng.random(gaps.shape) < 0.02) * rng.uniform(0.01, 0.06, gaps.shape)
    times = np.round(due[:, None] + ttft[:, None] + np.concatenate((np.zeros((count, 1)), gaps.cumsum(1)), 1), 6)
    for row in range(count):
        stamps = times[row].tolist()
        first = float(ttft[row]) * 1e3
        yield RequestRecord(
            index=start + row,
            id=f"bench-{start + row}",
            scheduled=float(due[row]),
            sent=float(due[row]) + 0.0002,
            headers=stamps[0],
            first_byte=stamps[0],
            chunks=[(stamp, 1) for stamp in stamps],
            end=stamps[-1],
            prompt_tokens=1024,
            output_tokens=chunks,
            requested_output_tokens=chunks,
            finish_reason="length",
            status=200,
            stages=Stages(
                queue=0.3,
                prefill=0.6 * first if disagg else 0.0,
                kv_and_first_decode=0.3 * first if disagg else first,
                decode=(stamps[-1] - stamps[0]) * 1e3,
                decode_instance="decode-0" if disagg else f"combined-{row % 2}",
                prefill_instance="prefill-0" if disagg else "",
            ),
            output_hash=f"{start + row:064x}",
        )


def _manifest(topology: Topology, requests: int, chunks: int, last: float) -> Manifest:
    roles = [Role.PREFILL, Role.DECODE] if topology is Topology.DISAGG else [Role.COMBINED, Role.COMBINED]
    engines = [
        EngineInfo(name=f"{role}-{number}", role=role, engine=SIMULATED_ENGINE, gpus=[number])
        for number, role in enumerate(roles)
    ]
    return Manifest(
        run_id=topology.value,
        created="2026-01-01T00:00:00Z",
        clock=_CLOCK,
        deployment=Deployment(topology=topology, label=topology.value, gpus=2, engines=engines, simulated=True),
        workload=Workload(
            dataset="random",
            arrival="constant",
            rate=RATE,
            duration_s=requests / RATE,
            requests=requests,
            seed=1,
            model="bench",
            input_tokens=1024,
            output_tokens=chunks,
            goodput={"ttft": 200.0, "tpot": 12.0},
        ),
        schedule_hash="bench",
        window=(0.0, last),
        client=ClientHealth(valid=True, dispatch_lag_ms={"p99": 0.2}, receive_lag_ms={"p99": 0.2}, limit_ms=5.0),
        complete=True,
    )


def _power(topology: Topology, last: float) -> Iterator[GpuHeader | GpuSample]:
    roles = [Role.PREFILL, Role.DECODE] if topology is Topology.DISAGG else [Role.COMBINED, Role.COMBINED]
    gpus = [GpuInfo(index=index, name="Simulated board", role=role) for index, role in enumerate(roles)]
    yield GpuHeader(clock=_CLOCK, backend="bench", simulated=True, interval_s=0.1, gpus=gpus)
    for step in range(-20, int(last * 10) + 21):
        for index, role in enumerate(roles):
            yield GpuSample(
                t=step / 10,
                index=index,
                role=role,
                power_w=400.0 + 50 * index,
                power_average_w=400.0 + 50 * index,
                energy_mj=(step + 20) * 100.0 * (400.0 + 50 * index),
                sm_clock_mhz=1980,
                utilization=0.9,
                throttle_reasons=0,
            )
