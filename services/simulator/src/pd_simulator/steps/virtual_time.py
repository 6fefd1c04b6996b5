"""The scheduler and the step model in virtual time: what a profile predicts, without a clock, an engine or a socket.

The same code as the simulated engines': a run of thousands of requests takes a second. What is left out is what the profile does not
model: the proxy, and the client.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pd_contracts.names import Connector
from pd_simulator.profile import Profile
from pd_simulator.steps.scheduler import Job, Limits, Scheduler, complete, work_of
from pd_simulator.steps.step_time import StepModel


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: seconds, tokens."""

    at: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines of a deployment; `prefills` 0 means plain ones, `others` are those that decode, `batched` is KV_BATCHED.

    Limits are vLLM's options of the same names; `kv_tokens` is the room of one engine's KV cache.
    """

    prefills: int
    others: int
    connector: Connector | None
    kv_tokens: int
    batched: bool = False
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    def limits(self, profile: Profile, *, chunked: bool = True) -> Limits:
        """Those of each engine."""
        return Limits(self.max_num_seqs, self.max_num_batched_tokens, self.kv_tokens, chunked, profile.async_scheduling)


def token_times(profile: Profile, engines: Engines, arrivals: Sequence[Arrival]) -> list[list[float]]:
    """When each output token of each request is written, seconds; engines are taken in turn, as round_robin does."""
    api_s = profile.api_ms / 1e3
    model = StepModel(profile, engines.connector, batched=engines.batched)
    if not engines.prefills:
        jobs = [(Job(a.prompt_tokens, a.output_tokens), a.at + api_s) for a in arrivals]
        return _decode(jobs, model, engines.limits(profile), engines.others)
    jobs = [(Job(a.prompt_tokens, 1, sends=True), a.at + api_s) for a in arrivals]
    prefilled = _prefill(jobs, model, profile, engines)
    jobs = []
    for arrival, (done, here) in zip(arrivals, prefilled, strict=True):
        external = arrival.prompt_tokens - 1
        job = Job(arrival.prompt_tokens, arrival.output_tokens, external=external, stall_s=model.stall_s(external))
        jobs.append((job, max(done + api_s, here) + model.wait_s(external)))
    return _decode(jobs, model, engines.limits(profile), engines.others)


def _decode(jobs: list[tuple[Job, float]], model: StepModel, limits: Limits, engines: int) -> list[list[float]]:
    times: dict[Job, list[float]] = {job: [] for job, _ in jobs}
    order = sorted(range(len(jobs)), key=lambda index: jobs[index][1])
    for engine in range(engines):
        scheduler = Scheduler(limits)
        for index in order[engine::engines]:
            scheduler.add(*jobs[index])
        for end, emitting in _steps(scheduler, model):
            for job in emitting:
                times[job].append(end)
    return list(times.values())


def _steps(scheduler: Scheduler, model: StepModel) -> Iterator[tuple[float, list[Job]]]:
    end = 0.0
    while (start := scheduler.next_start(end)) is not None:
        slots = scheduler.plan(start)
        end = start + model.step(work_of(slots)).seconds
        for slot in slots:
            complete(slot)
            if slot.job.generated >= slot.job.max_tokens:
                scheduler.remove(slot.job)
        yield end, [slot.job for slot in slots if slot.emits]


def _prefill(
    jobs: list[tuple[Job, float]], model: StepModel, profile: Profile, engines: Engines
) -> list[tuple[float, float]]:
    """When prefill answers each job and when decode has its KV; engines meet at the listeners, so their steps are taken in order of time."""
    limits = engines.limits(profile, chunked=engines.connector is not Connector.P2P_NCCL)
    schedulers = [Scheduler(limits) for _ in range(engines.prefills)]
    listener_free = [0.0] * engines.others
    listener: dict[Job, int] = {}
    for number, (job, ready) in enumerate(jobs):
        schedulers[number % len(schedulers)].add(job, ready)
        listener[job] = number % engines.others
    free, done = [0.0] * len(schedulers), dict[Job, tuple[float, float]]()
    while starts := [(at, n) for n, one in enumerate(schedulers) if (at := one.next_start(free[n])) is not None]:
        start, number = min(starts)
        slots = schedulers[number].plan(start)
        end = start + model.step(work_of(slots)).seconds
        finished = [slot.job for slot in slots if slot.emits]
        here = dict.fromkeys(finished, end)
        for job in finished:
            if busy := model.receive_s(job.prompt_tokens):
                at = listener[job]
                # One after the other, layer by layer as they are computed, which the step waits for; or whole, after it.
                listener_free[at] = here[job] = max(end if engines.batched else start, listener_free[at]) + busy
        if not engines.batched:
            end = max(end, *here.values()) if here else end
        for slot in slots:
            complete(slot)
        for job in finished:
            schedulers[number].remove(job)
            done[job] = end, here[job]
        free[number] = end
    return [done[job] for job, _ in jobs]
