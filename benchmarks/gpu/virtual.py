# ruff: noqa: INP001 - scripts, not a package
"""The simulator's scheduler and step model in virtual time: what a profile predicts for a run that was measured.

The same code as the simulated engines', without their clock: a run of thousands of requests takes a second. What is left out is what
the profile does not model: the proxy, and the client.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pd_contracts.names import Connector
from pd_simulator.profile import Profile
from pd_simulator.scheduler import Job, Limits, Scheduler, complete, work_of
from pd_simulator.steptime import StepModel


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: seconds, tokens."""

    at: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Predicted:
    """Latencies of one request in milliseconds."""

    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Engines of a deployment; `prefills` 0 means plain ones. Limits are those of the measured engines."""

    prefills: int
    others: int
    connector: Connector | None
    kv_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


def predict(profile: Profile, shape: Shape, arrivals: Sequence[Arrival]) -> list[Predicted]:
    """Latencies of every request, in the order of `arrivals`; engines are taken in turn, as round_robin does."""
    api = profile.api_ms / 1e3
    model = StepModel(profile, shape.connector)
    if not shape.prefills:
        jobs = [(Job(a.input_tokens, a.output_tokens), a.at + api) for a in arrivals]
        return _latencies(arrivals, _serve(jobs, shape.others, model, shape))
    jobs = [(Job(a.input_tokens, 1, sends=True), a.at + api) for a in arrivals]
    prefilled = _prefill(jobs, model, shape)
    jobs = []
    for arrival, done in zip(arrivals, prefilled, strict=True):
        external = arrival.input_tokens - 1
        job = Job(arrival.input_tokens, arrival.output_tokens, external=external, stall_s=model.stall_s(external))
        jobs.append((job, done + api + model.wait_s(external)))
    return _latencies(arrivals, _serve(jobs, shape.others, model, shape))


def _limits(shape: Shape, *, chunked: bool = True) -> Limits:
    return Limits(shape.max_num_seqs, shape.max_num_batched_tokens, shape.kv_tokens, chunked=chunked)


def _serve(jobs: list[tuple[Job, float]], engines: int, model: StepModel, shape: Shape) -> list[tuple[float, float]]:
    """When each job's first and last token were written, seconds."""
    first: dict[Job, float] = {}
    last: dict[Job, float] = {}
    order = sorted(range(len(jobs)), key=lambda index: jobs[index][1])
    for engine in range(engines):
        scheduler = Scheduler(_limits(shape))
        for index in order[engine::engines]:
            scheduler.add(*jobs[index])
        _drain(scheduler, model, first, last)
    return [(first[job], last[job]) for job, _ in jobs]


def _drain(scheduler: Scheduler, model: StepModel, first: dict[Job, float], last: dict[Job, float]) -> None:
    now = 0.0
    while (start := scheduler.next_start(now)) is not None:
        slots = scheduler.plan(start)
        now = start + model.step(work_of(slots)).seconds
        for slot in slots:
            complete(slot)
            if slot.emits:
                first.setdefault(slot.job, now)
                last[slot.job] = now
            if slot.job.generated >= slot.job.max_tokens:
                scheduler.remove(slot.job)


def _prefill(jobs: list[tuple[Job, float]], model: StepModel, shape: Shape) -> list[float]:
    """When prefill answers each job; the engines meet at the listeners of the decodes, so their steps are taken in order of time."""
    chunked = shape.connector is not Connector.P2P_NCCL
    engines = [Scheduler(_limits(shape, chunked=chunked)) for _ in range(shape.prefills)]
    listener_free = [0.0] * shape.others
    listener: dict[Job, int] = {}
    for number, (job, ready) in enumerate(jobs):
        engines[number % len(engines)].add(job, ready)
        listener[job] = number % shape.others
    free, done = [0.0] * len(engines), {}
    while starts := [(start, n) for n, one in enumerate(engines) if (start := one.next_start(free[n])) is not None]:
        start, number = min(starts)
        slots = engines[number].plan(start)
        end = start + model.step(work_of(slots)).seconds
        for slot in slots:
            complete(slot)
            if slot.emits:
                busy = model.receive_s(slot.job.prompt_tokens)
                if busy:
                    at = listener[slot.job]
                    listener_free[at] = max(start, listener_free[at]) + busy
                    end = max(end, listener_free[at])
                engines[number].remove(slot.job)
        free[number] = end
        done |= {slot.job: end for slot in slots if slot.emits}
    return [done[job] for job, _ in jobs]


def _latencies(arrivals: Sequence[Arrival], served: list[tuple[float, float]]) -> list[Predicted]:
    return [
        Predicted((first - a.at) * 1e3, (last - first) * 1e3 / max(1, a.output_tokens - 1))
        for a, (first, last) in zip(arrivals, served, strict=True)
    ]
