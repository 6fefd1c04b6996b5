"""The scheduler and the step model in virtual time: what a profile predicts, without a clock, an engine or a socket.

It runs the code of the simulated engines; a run of thousands of requests takes a second. The proxy and the client, which a profile does not
model, are left out.
"""

from collections.abc import Iterator, Sequence

from pd_contracts.names import Connector
from pd_simulator.profile import Profile
from pd_simulator.steps.engines import Arrival, Engines, Order
from pd_simulator.steps.launching import Launching
from pd_simulator.steps.scheduler import Job, Limits, Scheduler, complete, work_of
from pd_simulator.steps.step_time import StepModel


def token_times(profile: Profile, engines: Engines, arrivals: Sequence[Arrival]) -> list[list[float]]:
    """When each output token of each request is written, seconds; engines are taken in turn.

    Raises:
        ValueError: if a request could never be served.
    """
    for refusal in (engines.refusal(arrival.prompt_tokens, arrival.output_tokens) for arrival in arrivals):
        if refusal:
            raise ValueError(refusal)
    api_s = profile.api_ms / 1e3
    model = StepModel(profile, engines.connector, batched=engines.batched)
    if not engines.prefills:
        jobs = [(Job(a.prompt_tokens, a.output_tokens, external=a.cached, again=True), a.at + api_s) for a in arrivals]
        return _decode(jobs, model, engines.limits(profile), engines)
    computed = _computed(profile, engines, arrivals, model)
    if engines.order is Order.HAND_OFF:
        return _handed_off(computed, arrivals, model, engines.limits(profile), engines)
    ready = _asked(profile, engines, arrivals, model, computed)
    jobs, again = [], engines.loads_again
    for arrival, at in zip(arrivals, ready, strict=True):
        prompt, external = arrival.prompt_tokens, arrival.prompt_tokens - 1
        stall_s = model.stall_s(external)
        jobs.append((Job(prompt, arrival.output_tokens, external=external, stall_s=stall_s, again=again), at))
    return _decode(jobs, model, engines.limits(profile), engines)


def _computed(
    profile: Profile, engines: Engines, arrivals: Sequence[Arrival], model: StepModel
) -> list[tuple[float, float]]:
    """When prefill answers each request and when decode has its KV."""
    api_s = profile.api_ms / 1e3
    jobs = [
        (Job(a.prompt_tokens, 1, external=a.cached, sends=True, peer=engines.turn(number)[1]), a.at + api_s)
        for number, a in enumerate(arrivals)
    ]
    return _prefill(jobs, model, profile, engines)


def _asked(
    profile: Profile,
    engines: Engines,
    arrivals: Sequence[Arrival],
    model: StepModel,
    computed: list[tuple[float, float]],
) -> list[float]:
    """When each request may join decode's batch; decode writes the whole answer."""
    tokens = [arrival.prompt_tokens - 1 for arrival in arrivals]
    if engines.order is Order.AT_ONCE:
        return [done + model.at_once_s(count) for (done, _), count in zip(computed, tokens, strict=True)]
    asked = [max(done + profile.api_ms / 1e3, here) for done, here in computed]
    if engines.connector is Connector.NIXL:
        asked = _fetched(asked, arrivals, model, engines)
    return [at + model.wait_s(count) for at, count in zip(asked, tokens, strict=True)]


def _handed_off(
    computed: list[tuple[float, float]],
    arrivals: Sequence[Arrival],
    model: StepModel,
    limits: Limits,
    engines: Engines,
) -> list[list[float]]:
    """Prefill's token, then decode's: it goes on behind that token, unless that is the whole answer."""
    times = [[done + model.first_token_s] for done, _ in computed]
    further = [number for number, arrival in enumerate(arrivals) if arrival.output_tokens > 1]
    jobs = []
    for number in further:
        prompt, output = arrivals[number].prompt_tokens, arrivals[number].output_tokens
        job = Job(prompt + 1, output - 1, external=prompt, stall_s=model.stall_s(prompt))
        jobs.append((job, computed[number][0] + model.at_once_s(prompt)))
    turns = [engines.turn(number)[1] for number in further]
    for number, written in zip(further, _decode(jobs, model, limits, engines, turns), strict=True):
        times[number] += written
    return times


def _fetched(asked: list[float], arrivals: Sequence[Arrival], model: StepModel, engines: Engines) -> list[float]:
    """When decode has fetched each request's KV: one after another, in the order in which it asks for them."""
    free, fetched = [0.0] * engines.others, list(asked)
    for number in sorted(range(len(asked)), key=lambda index: asked[index]):
        decode = engines.turn(number)[1]
        free[decode] = max(free[decode], asked[number]) + model.receive_s(arrivals[number].prompt_tokens)
        fetched[number] = free[decode]
    return fetched


def _decode(
    jobs: list[tuple[Job, float]], model: StepModel, limits: Limits, engines: Engines, turns: Sequence[int] = ()
) -> list[list[float]]:
    """When each token of each job is written; `turns` names the engines that write, unless they are taken in turn."""
    times: dict[Job, list[float]] = {job: [] for job, _ in jobs}
    turns = turns or [engines.turn(number)[1] for number in range(len(jobs))]
    for engine in range(engines.others):
        scheduler = Scheduler(limits)
        for (job, ready), turn in zip(jobs, turns, strict=True):
            if turn == engine:
                scheduler.add(job, ready)
        for at, emitting in _steps(scheduler, model, Launching(model.launch, engine)):
            for job in emitting:
                times[job].append(at)
    return list(times.values())


def _steps(scheduler: Scheduler, model: StepModel, launching: Launching) -> Iterator[tuple[float, list[Job]]]:
    """When clients have the tokens of each step. They wait while the processor launches the next one."""
    end, emitting = 0.0, list[Job]()
    while (start := scheduler.next_start(end)) is not None:
        slots = scheduler.plan(start, launching.launched)
        work = work_of(slots)
        launched = launching.waits(work, scheduler.planned)
        yield (max(end, launched) if scheduler.planned < end else end), emitting
        end = launching.end(launched, start + model.step(work).seconds)
        for slot in slots:
            complete(slot)
            if slot.job.generated >= slot.job.max_tokens:
                scheduler.end(slot.job)
        emitting = [slot.job for slot in slots if slot.emits]
    yield end, emitting


class _PrefillEngine:
    """One prefill engine: its queue, when it is free, and answers that wait for the end of the next step."""

    def __init__(self, limits: Limits) -> None:
        self.scheduler = Scheduler(limits)
        self.free = 0.0
        self.held: list[Job] = []


def _prefill(
    jobs: list[tuple[Job, float]], model: StepModel, profile: Profile, engines: Engines
) -> list[tuple[float, float]]:
    """When prefill answers each job and when decode has its KV; engines meet at the listeners, so their steps are taken in order of time."""
    limits = engines.limits(profile, chunked=engines.chunked)
    sites = [_PrefillEngine(limits) for _ in range(engines.prefills)]
    for number, (job, ready) in enumerate(jobs):
        sites[engines.turn(number)[0]].scheduler.add(job, ready)
    listener_free = [0.0] * engines.others
    answered, here = dict[Job, float](), dict[Job, float]()
    while starts := [(at, n) for n, one in enumerate(sites) if (at := one.scheduler.next_start(one.free)) is not None]:
        start, number = min(starts)
        site = sites[number]
        slots = site.scheduler.plan(start)
        end = start + model.step(work_of(slots)).seconds
        finished = [slot.job for slot in slots if slot.emits]
        here |= _pushed(finished, (start, end), listener_free, model, engines)
        if not engines.batched:
            end = max([end, *(here[job] for job in finished)])
        for slot in slots:
            complete(slot)
        for job in finished:
            site.scheduler.remove(job)
        site.free = end
        answered |= dict.fromkeys(site.held, end)
        site.held = finished
        if not (model.late_answers and site.scheduler.next_start(end) == end):
            answered |= dict.fromkeys(finished, end)
            site.held = []
    return [(answered[job], here[job]) for job, _ in jobs]


def _pushed(
    finished: Sequence[Job], step: tuple[float, float], free: list[float], model: StepModel, engines: Engines
) -> dict[Job, float]:
    """When each job's KV is at its decode engine: after those before it, layer by layer as they are computed, or whole after the step."""
    start, end = step
    here = dict.fromkeys(finished, end)
    if engines.connector is not Connector.P2P_NCCL:
        return here
    for job in finished:
        if busy := model.receive_s(job.prompt_tokens):
            free[job.peer] = here[job] = max(end if engines.batched else start, free[job.peer]) + busy
    return here
