"""Synthetic run folders with known answers, for the tests of pd_analysis.

`request`, `manifest`, `deployment` and `power_log` make one part each, with defaults that a test overrides where it matters;
`write_run` puts a folder on disk as the load generator does. `write_pair` draws a realistic pair: the shapes of two H200 with an
8 B model at 20 requests/s, 2048 → 128 tokens, where disaggregation smooths decoding and costs time to first token.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from pd_analysis.numbers.evaluation import Group, evaluate, together
from pd_analysis.records.collector import requests_of
from pd_analysis.records.run import Run
from pd_analysis.records.samples import samples_of
from pd_contracts.names import SIMULATED_ENGINE, Connector, Role, Topology
from pd_contracts.records import (
    GPU,
    MANIFEST,
    REQUESTS,
    ClientHealth,
    Clock,
    Deployment,
    EngineInfo,
    Failure,
    GpuHeader,
    GpuInfo,
    GpuSample,
    Manifest,
    RequestRecord,
    Workload,
    append_lines,
    schedule_hash,
    write_json,
)
from pd_contracts.timing import Stages

WALL = 1_760_000_000.0  # any wall clock does, as long as all files of a run agree
CLOCK = Clock(wall=WALL, monotonic=0.0)

PowerModel = Callable[[np.ndarray], np.ndarray]
PowerLog = tuple[GpuHeader, list[GpuSample]]


def request(
    index: int, scheduled: float = 0.0, *, ttft: float = 0.1, gaps: Sequence[float] = (0.01, 0.01), **changes: Any
) -> RequestRecord:
    """A successful request, sent on time, one token per chunk; `changes` override fields."""
    times = np.cumsum([scheduled + ttft, *gaps]).tolist()
    fields: dict[str, Any] = {
        "index": index,
        "id": f"r{index}",
        "scheduled": scheduled,
        "sent": scheduled,
        "headers": times[0],
        "first_byte": times[0],
        "chunks": [(time, 1) for time in times],
        "end": times[-1],
        "prompt_tokens": 100,
        "output_tokens": len(times),
        "status": 200,
        "output_hash": f"{index:064x}",
    }
    return RequestRecord(**fields | changes)


def staged(index: int, *, prefill: float = 0.0, **stages: Any) -> RequestRecord:
    """A request of 20 per second; `stages` are fields of its stages, such as who served it. Times in ms."""
    found = Stages(queue=0.1, prefill=prefill, kv_and_first_decode=1.0, decode=2.0, **stages)
    return request(index, index / 20, stages=found)


def failed(
    index: int, scheduled: float = 0.0, *, kind: str = "status", message: str = "502 from decode", **changes: Any
) -> RequestRecord:
    """A request that failed without a token, half a second after it was sent."""
    fields: dict[str, Any] = {
        "chunks": [],
        "headers": None,
        "first_byte": None,
        "end": scheduled + 0.5,
        "prompt_tokens": None,
        "output_tokens": None,
        "status": 502,
        "output_hash": None,
        "error": Failure(kind=kind, message=message),
    }
    return request(index, scheduled, **fields | changes)


def deployment(topology: Topology = Topology.COMBINED, **changes: Any) -> Deployment:
    """Two engines in the topology's usual roles, on two GPUs or as many as `gpus` says."""
    each = max(1, (changes.get("gpus") or 2) // 2)
    roles = [Role.PREFILL, Role.DECODE] if topology is Topology.DISAGG else [Role.COMBINED, Role.COMBINED]
    engines = [
        EngineInfo(
            name=f"{role.value}-{number if role is Role.COMBINED else 0}",
            role=role,
            engine="vllm",
            version="0.23.0",
            model="llama-3.1-8b",
            connector=Connector.P2P_NCCL if topology is Topology.DISAGG else None,
            gpus=list(range(number * each, (number + 1) * each)),
        )
        for number, role in enumerate(roles)
    ]
    fields: dict[str, Any] = {"topology": topology, "label": topology.value, "gpus": 2, "engines": engines}
    return Deployment(**fields | changes)


def workload(**changes: Any) -> Workload:
    """A small Poisson load of random prompts."""
    fields: dict[str, Any] = {
        "dataset": "random",
        "arrival": "poisson",
        "rate": 1.0,
        "duration_s": 10.0,
        "requests": 10,
        "seed": 0,
        "model": "llama-3.1-8b",
        "burstiness": 1.0,
        "input_tokens": 100,
        "output_tokens": 3,
        "goodput": {"ttft": 200.0, "tpot": 50.0},
    }
    return Workload(**fields | changes)


def manifest(topology: Topology = Topology.COMBINED, **changes: Any) -> Manifest:
    """A complete run of a client that kept up, with a window of 10 s."""
    fields: dict[str, Any] = {
        "run_id": topology.value,
        "created": "2025-10-09T08:53:20Z",
        "clock": CLOCK,
        "deployment": deployment(topology),
        "workload": workload(),
        "schedule_hash": "a" * 16,
        "window": (0.0, 10.0),
        "client": ClientHealth(
            valid=True,
            dispatch_lag_ms={"p50": 0.2, "p99": 1.1},
            receive_lag_ms={"p99": 0.9},
            cpu_fraction=0.2,
            limit_ms=5.0,
        ),
        "complete": True,
        "command": ["pd-loadgen", "run", "--rate", "1", "--goodput", "ttft:200 tpot:50"],
        "host": {"kernel": "Linux 6.1", "cpus": "32"},
    }
    return Manifest(**fields | changes)


def power_log(
    boards: Mapping[int, tuple[Role | None, PowerModel]],
    *,
    start: float = 0.0,
    end: float = 10.0,
    interval: float = 0.1,
    clock: Clock = CLOCK,
    simulated: bool = False,
    throttle: int = 0,
    fine: float = 0.01,
    **without: None,
) -> PowerLog:
    """Readings of boards with a known power curve, whose counter is its integral on a grid of `fine` seconds.

    `without` names fields of the samples that these boards do not have, as `energy_mj=None`.
    """
    grid = np.round(np.arange(start, end + fine / 2, fine), 6)
    step = round(interval / fine)
    samples = []
    for index, (role, model) in boards.items():
        power = np.broadcast_to(model(grid), grid.shape)
        energy = np.concatenate(([0.0], np.cumsum((power[1:] + power[:-1]) / 2 * fine)))
        for at in range(0, len(grid), step):
            fields: dict[str, Any] = {
                "t": float(grid[at]),
                "index": index,
                "role": role,
                "power_w": float(power[at]),
                "power_average_w": float(power[max(0, at - round(1 / fine)) : at + 1].mean()),
                "energy_mj": 5e6 + float(energy[at]) * 1e3,
                "sm_clock_mhz": 1980,
                "utilization": 0.9,
                "temperature_c": 52.0,
                "throttle_reasons": throttle,
            }
            samples.append(GpuSample(**fields | without))
    gpus = [
        GpuInfo(index=index, name="NVIDIA H200", role=role, power_limit_w=700.0, driver="580.65.06")
        for index, (role, _) in boards.items()
    ]
    header = GpuHeader(clock=clock, backend="nvml", simulated=simulated, interval_s=interval, gpus=gpus)
    return header, sorted(samples, key=lambda sample: (sample.t, sample.index))


def constant(watts: float) -> PowerModel:
    """A board that draws the same all the time."""
    return lambda t: np.full_like(t, watts)


def wavering(watts: float) -> PowerModel:
    """A board that draws so much in the mean, and never the same twice, as real ones do."""
    return lambda t: watts + np.sin(40.0 * t)


def on_boards(about: Manifest, power: PowerLog) -> Manifest:
    """The same manifest of a deployment that has exactly the recorded boards with a role."""
    engines = [
        EngineInfo(name=f"{gpu.role.value}-{gpu.index}", role=gpu.role, engine="vllm", gpus=[gpu.index])
        for gpu in power[0].gpus
        if gpu.role is not None
    ]
    served = msgspec.structs.replace(about.deployment, engines=engines, gpus=len(engines))
    return msgspec.structs.replace(about, deployment=served)


def write_run(
    folder: Path, records: Sequence[RequestRecord], about: Manifest | None = None, power: PowerLog | None = None
) -> Path:
    """Write a run folder; the workload's numbers of requests and the window are set to what there is."""
    about = about or manifest()
    offered = [record for record in records if not record.warmup]
    if about.window is not None and offered:
        ends = [time for record in offered for time in (record.scheduled, record.end) if time is not None]
        about = msgspec.structs.replace(about, window=(min(record.scheduled for record in offered), max(ends)))
    warmup = sum(record.warmup for record in records)
    load = msgspec.structs.replace(about.workload, requests=len(records) - warmup, warmup_requests=warmup)
    write_json(folder / MANIFEST, msgspec.structs.replace(about, workload=load))
    append_lines(folder / REQUESTS, records)
    if power is not None:
        append_lines(folder / GPU, [power[0], *power[1]])
    return folder


def run(records: Sequence[RequestRecord], about: Manifest | None = None, power: PowerLog | None = None) -> Run:
    """The same run without a disk."""
    about = about or manifest()
    return Run(
        path=Path("results") / about.run_id,
        manifest=about,
        requests=requests_of(records, about.workload.goodput),
        gpu=power[0] if power else None,
        samples=samples_of(power[1], power[0]) if power else pd.DataFrame(),
    )


def group(*runs: Run) -> Group:
    """Runs measured and put into one comparison."""
    return together(evaluate(runs))


def write_pair(
    root: Path, *, requests: int = 400, tokens: int = 128, seed: int = 7, simulated: bool = False
) -> list[Path]:
    """Write a realistic disagg run and a combined one of the same schedule."""
    return [
        write_realistic(
            root / topology.value, topology, requests=requests, tokens=tokens, seed=seed, simulated=simulated
        )
        for topology in (Topology.DISAGG, Topology.COMBINED)
    ]


def write_realistic(
    folder: Path,
    topology: Topology,
    *,
    requests: int = 400,
    tokens: int = 128,
    seed: int = 7,
    simulated: bool = False,
    rate: float = 20.0,
    label: str = "",
) -> Path:
    """Write one run whose latencies and power have the shape that two H200 show."""
    rng = np.random.default_rng(seed)
    offsets = 100.0 + np.cumsum(rng.exponential(1 / rate, requests))
    load = min(rate / 20, 1.5)
    records = [
        _realistic_request(rng, number, float(due), tokens=tokens, topology=topology, load=load)
        for number, due in enumerate(offsets)
    ]
    window = (records[0].scheduled, max(record.end or 0.0 for record in records))
    parts = [(round(float(due - 100.0), 6), 2048, tokens) for due in offsets]
    served = deployment(
        topology,
        simulated=simulated,
        label=label or topology.value,
        software={"vllm": "0.23.0", "torch": "2.11.0+cu130"},
    )
    if simulated:
        engines = [
            msgspec.structs.replace(engine, engine=SIMULATED_ENGINE, version="0.1.0") for engine in served.engines
        ]
        served = msgspec.structs.replace(served, engines=engines)
    about = manifest(
        topology,
        deployment=served,
        workload=workload(
            rate=rate,
            duration_s=requests / rate,
            input_tokens=2048,
            output_tokens=tokens,
            seed=seed,
            goodput={"ttft": 500.0, "tpot": 12.0},
        ),
        schedule_hash=schedule_hash(parts, seed),
        window=window,
        command=[
            *(
                [
                    "pd-loadgen",
                    "run",
                    "--url",
                    "http://127.0.0.1:10001",
                    "--model",
                    "llama-3.1-8b",
                    "--dataset",
                    "random",
                ]
            ),
            *(
                f"--input-tokens 2048 --output-tokens {tokens} --rate {rate:g} --duration {requests / rate:g} --seed {seed}".split()
            ),
            *("--goodput", "ttft:500 tpot:12", "--monitor", "http://127.0.0.1:9835", "--out", f"results/{folder.name}"),
        ],
    )
    return write_run(folder, records, about, _realistic_power(rng, topology, window, load, simulated=simulated))


def _realistic_request(
    rng: np.random.Generator, index: int, due: float, *, tokens: int, topology: Topology, load: float
) -> RequestRecord:
    sent = due + float(rng.exponential(0.0004))
    if topology is Topology.DISAGG:
        queue, prefill = 0.4 + rng.exponential(0.3), (60 + 540 * load * rng.beta(2.2, 2.4)) * 1.1
        kv = 18 + rng.gamma(4, 6)
        gaps = rng.normal(0.0071, 0.0004, tokens - 1).clip(0.005)
        gaps[rng.integers(0, tokens - 1, 3)] += rng.uniform(0.004, 0.012, 3)
    else:
        queue, prefill = 0.4 + rng.exponential(0.3), 0.0
        kv = 52 + rng.gamma(1.4, 42 * load)
        gaps = rng.normal(0.0079, 0.0006, tokens - 1).clip(0.005)
        stalls = rng.poisson(6 * load)
        gaps[rng.integers(0, tokens - 1, stalls)] += rng.uniform(0.03, 0.115, stalls)
    ttft = (queue + prefill + kv) / 1e3
    stages = Stages(
        queue=float(queue),
        prefill=float(prefill),
        kv_and_first_decode=float(kv),
        decode=float(gaps.sum() * 1e3),
        prefill_instance="prefill-0" if topology is Topology.DISAGG else "",
        decode_instance="decode-0" if topology is Topology.DISAGG else f"combined-{index % 2}",
    )
    return request(
        index, due, ttft=sent - due + float(ttft), gaps=gaps.tolist(), sent=sent, prompt_tokens=2048, stages=stages
    )


def _realistic_power(
    rng: np.random.Generator, topology: Topology, window: tuple[float, float], load: float, *, simulated: bool
) -> PowerLog:
    def busy(mean: float, swing: float) -> PowerModel:
        phase = float(rng.uniform(0, 6))

        def model(t: np.ndarray) -> np.ndarray:
            ramp = np.clip((t - window[0]) / 0.4, 0, 1) * np.clip((window[1] - t) / 0.8, 0, 1)
            wave = np.sin(t * 1.7 + phase) * 0.4 + np.sin(t * 9.1 + phase) * 0.3 + rng.normal(0, 0.5, t.shape)
            return 78 + ramp * (mean * min(1.0, 0.35 + 0.65 * load) - 78 + swing * wave)

        return model

    if topology is Topology.DISAGG:
        boards: dict[int, tuple[Role | None, PowerModel]] = {
            0: (Role.PREFILL, busy(610, 60)),
            1: (Role.DECODE, busy(520, 25)),
        }
    else:
        boards = {0: (Role.COMBINED, busy(560, 60)), 1: (Role.COMBINED, busy(575, 60))}
    return power_log(boards, start=round(window[0] - 4, 2), end=round(window[1] + 4, 2), simulated=simulated)
