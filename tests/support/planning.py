"""Loads, deployments and runs for tests of the planner."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_contracts.records import (
    GPU,
    MANIFEST,
    REQUESTS,
    Clock,
    Deployment,
    EngineInfo,
    GpuHeader,
    GpuInfo,
    GpuSample,
    Manifest,
    RequestRecord,
    Workload,
    encode_line,
    write_json,
)
from pd_contracts.timing import Stages
from pd_planner.des.deployment import Outcome, simulate
from pd_planner.des.power import shares, watts
from pd_planner.emit.plan_file import Deployment as PlannedDeployment
from pd_planner.emit.plan_file import PlanFile, Predicted
from pd_planner.search.candidates import EngineLimits
from pd_planner.traffic.load import Load
from pd_simulator.kv_blocks import BLOCK_TOKENS
from pd_simulator.profile import Profile, load_profile
from pd_simulator.steps.engines import Arrival, Engines, Order
from pd_simulator.steps.virtual_time import token_times

H200 = load_profile("h200-llama3-8b")


@st.composite
def deployments(draw: st.DrawFn, connectors: Sequence[Connector] = ()) -> Engines:
    """Any deployment of at most seven engines that can serve 3,000 + 200 tokens; one that hands over by one of `connectors`, if they are given."""
    prefills = draw(st.integers(1 if connectors else 0, 4))
    connector = draw(st.sampled_from(list(connectors or Connector))) if prefills else None
    sequences = draw(st.integers(1, 40))
    return Engines(
        prefills=prefills,
        others=draw(st.integers(1, 3)),
        connector=connector,
        kv_tokens=draw(st.integers(3216, 5000) | st.integers(5000, 40_000)),
        batched=connector is Connector.P2P_NCCL and draw(st.booleans()),
        max_num_seqs=sequences,
        max_num_batched_tokens=draw(st.integers(3000, 8192)),
        order=draw(st.sampled_from(list(Order))) if connector is Connector.P2P else Order.AFTER,
    )


@st.composite
def loads(draw: st.DrawFn) -> Load:
    """Up to 60 requests: together, apart, or in bursts; short and long; with and without cached prefixes."""
    count = draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    at = np.sort(generator.uniform(0, draw(st.sampled_from([0.01, 0.5, 5.0, 50.0])), count))
    prompt = generator.integers(1, draw(st.sampled_from([2, 600, 3000])), count)
    output = generator.integers(1, draw(st.sampled_from([2, 30, 200])), count)
    cached = (generator.uniform(0, 1, count) ** 3 * prompt).astype(int) * draw(st.integers(0, 1))
    return Load.of(at - at[0], prompt, output, cached)


@st.composite
def crowded(draw: st.DrawFn) -> tuple[Engines, Load]:
    """A deployment whose engines have KV room for a few of the requests, and so preempt some."""
    count = draw(st.integers(4, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    at = np.sort(generator.uniform(0, draw(st.sampled_from([0.01, 1.0, 3.0])), count))
    prompt = generator.integers(1, draw(st.sampled_from([2, 100, 400])), count)
    output = generator.integers(1, draw(st.sampled_from([60, 300])), count)
    cached = (generator.uniform(0, 1, count) ** 3 * prompt).astype(int) * draw(st.integers(0, 1))
    room = BLOCK_TOKENS + int((prompt + output).max() * draw(st.floats(1.0, 3.0)))
    sequences, budget = draw(st.integers(3, 40)), draw(st.integers(400, 900))
    engines = replace(draw(deployments()), kv_tokens=room, max_num_seqs=sequences, max_num_batched_tokens=budget)
    return engines, Load.of(at - at[0], prompt, output, cached)


def arrivals(load: Load) -> list[Arrival]:
    """The load as the oracle takes it."""
    columns = (load.at.tolist(), load.prompt.tolist(), load.output.tolist(), load.cached.tolist())
    return [Arrival(*each) for each in zip(*columns, strict=True)]


def oracle(profile: Profile, engines: Engines, load: Load) -> tuple[np.ndarray, np.ndarray]:
    """First and last token of each request, by the simulator's own scheduler, a step at a time."""
    times = token_times(profile, engines, arrivals(load))
    return np.array([each[0] for each in times]), np.array([each[-1] for each in times])


def poisson(rate: float, seconds: float, prompt: int, output: int, seed: int = 1) -> Load:
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, int(rate * seconds * 2) + 20)
    at = np.cumsum(gaps)
    return Load.of(at[at < seconds], prompt, output)


def write_run(folder: Path, profile: Profile, engines: Engines, load: Load, label: str) -> None:
    """A run folder as measuring this load would have left it, were the engines exactly as the profile says; with power, by role."""
    outcome = simulate(profile, engines, load)
    times = token_times(profile, engines, arrivals(load))
    folder.mkdir(parents=True)
    start, prompt, output = 100.0, int(load.prompt[0]), int(load.output[0])
    records = [
        RequestRecord(
            index=number,
            id=str(number),
            scheduled=start + at,
            sent=start + at,
            chunks=[(start + token, 1) for token in tokens],
            end=start + tokens[-1],
            prompt_tokens=int(load.prompt[number]),
            output_tokens=len(tokens),
            stages=_stages(engines, number, outcome, at),
        )
        for number, (at, tokens) in enumerate(zip(load.at.tolist(), times, strict=True))
    ]
    (folder / REQUESTS).write_bytes(b"".join(map(encode_line, records)))
    window = start + float(load.at.min()), start + float(outcome.last.max())
    roles = [Role.PREFILL] * engines.prefills + [Role.DECODE if engines.prefills else Role.COMBINED] * engines.others
    names = _names(engines)
    manifest = Manifest(
        run_id=label,
        created="",
        clock=Clock(wall=0.0, monotonic=0.0),
        deployment=Deployment(
            label=label,
            gpus=len(roles),
            engines=[
                EngineInfo(name=name, role=role, engine="vllm", version="0.0", connector=engines.connector)
                for name, role in zip(names, roles, strict=True)
            ],
        ),
        workload=Workload(
            dataset="random",
            arrival="poisson",
            rate=len(load) / max(1.0, float(load.at.max())),
            duration_s=float(load.at.max()),
            requests=len(load),
            seed=1,
            model="made",
            input_tokens=prompt,
            output_tokens=output,
        ),
        schedule_hash="",
        window=window,
        complete=True,
    )
    write_json(folder / MANIFEST, manifest)
    _write_power(folder / GPU, profile, outcome, roles, window)


def _names(engines: Engines) -> list[str]:
    other = "decode" if engines.prefills else "combined"
    return [*(f"prefill-{n}" for n in range(engines.prefills)), *(f"{other}-{n}" for n in range(engines.others))]


def _stages(engines: Engines, number: int, outcome: Outcome, at: float) -> Stages:
    prefill, other = engines.turn(number)
    names = _names(engines)
    answered = (float(outcome.answered[number]) - at) * 1e3 if engines.prefills else 0.0
    return Stages(
        queue=0.0,
        prefill=answered,
        kv_and_first_decode=0.0,
        decode=0.0,
        prefill_instance=names[prefill] if engines.prefills else "",
        decode_instance=names[engines.prefills + other],
        first_token=Role.PREFILL if engines.order is Order.HAND_OFF else "",
    )


def _write_power(
    path: Path, profile: Profile, outcome: Outcome, roles: list[Role], window: tuple[float, float]
) -> None:
    """Idle before and after the window, and within it each board's mean power."""
    start, end = window
    share = shares(outcome.busy, end - start)
    gpus = [
        GpuInfo(index=n, name=profile.board, role=role, power_limit_w=profile.power.limit_w)
        for n, role in enumerate(roles)
    ]
    header = GpuHeader(clock=Clock(wall=0.0, monotonic=0.0), backend="nvml", simulated=False, interval_s=0.1, gpus=gpus)
    samples = []
    for t in np.arange(start - 5, end + 5, 0.1).tolist():
        for n, role in enumerate(roles):
            busy_s, idle_w = min(max(t - start, 0.0), end - start), profile.power.of(role).idle_w
            working = float(watts(profile.power, role, share[n : n + 1])[0])
            joules = busy_s * working + (t - start + 5 - busy_s) * idle_w
            now = working if start <= t <= end else idle_w
            samples.append(GpuSample(t=t, index=n, role=role, power_w=now, power_average_w=now, energy_mj=joules * 1e3))
    path.write_bytes(b"".join(map(encode_line, [header, *samples])))


def written_plan(
    folder: Path,
    prefills: int,
    others: int,
    cells: int = 1,
    connector: Connector | None = None,
    *,
    tensor_parallel: int = 1,
    order: Order = Order.AFTER,
    adaptive: bool = False,
    step_profile: str = "h200-llama3-8b",
) -> Path:
    """A plan.json whose answer is this deployment."""
    deployment = PlannedDeployment(
        prefills=prefills,
        others=others,
        connector=connector,
        tensor_parallel=tensor_parallel,
        cells=cells,
        label="planned",
        gpus=cells * (prefills + others) * tensor_parallel,
        order=order,
        adaptive=adaptive,
    )
    best = Predicted(
        deployment=deployment,
        capacity_per_gpu=[1.0],
        rate=1.0,
        within=1.0,
        latencies={},
        joules_per_output_token=1.0,
        watts={},
        trust="calibrated",
    )
    written = PlanFile(
        created="today",
        command="pd-plan",
        software={},
        profile=H200,
        profile_hash="",
        traffic={},
        rate=None,
        goodput={"ttft": 500.0, "tpot": 15.0},
        attainment=0.9,
        engine=EngineLimits(100_000, 64),
        prefix_caching=False,
        objective="goodput",
        draws=1,
        verdict=[],
        doubts=[],
        measurement="",
        choices=[best],
        step_profile=step_profile,
    )
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(written))
    return path
