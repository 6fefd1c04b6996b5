"""One engine that writes answers, plain or decode: continuous batching from its first request to its last token.

Steps that only decode are taken together: until the next sequence ends or the next request could join, each step is longer than the one
before by the same amount, so their times are a closed form. The work is proportional to the number of requests, not of tokens.
"""

from heapq import heappop, heappush
from math import floor, inf, sqrt
from typing import NamedTuple

from pd_planner.des.compiled import compiled, whole_zeros, zeros
from pd_planner.des.model import (
    BATCH,
    DECODES,
    NOBODY,
    EngineLimits,
    Floats,
    Ints,
    Jobs,
    Launching,
    Rules,
    StepCosts,
    Times,
)
from pd_planner.des.steps import CONTEXT, SINGLES, STALL, TOKENS, WORK_COLUMNS, add_chunk, clear, step_ms
from pd_simulator.steps.launching import place

# `clock`, seconds but for the third: now, when the last step began, the tokens that the decoding sequences look back on, when the next step
# was planned, and when the processor had launched the last step that it launched kernel by kernel.
NOW, BEGAN, BEHIND, PLANNED, LAUNCHED = range(5)
# `state`: sequences that decode, requests that have come, those admitted, steps so far, KV reserved, requests done; the request whose prompt is
# computed in part, how much of it, how many prompts this step completes, and how many requests there are; how many have their first token;
# and how many had it, and how many were done, before the last step.
DECODING, ARRIVED, ADMITTED, STEP, RESERVED, DONE, PARTIAL, COMPUTED, COMPLETED, KNOWN, STARTED, FRESH, PAST = range(13)
CLOCK_COLUMNS, STATE_COLUMNS = 5, 13
_place = compiled(place)


Ends = list[tuple[int, int]]  # a heap: after which step which job ends


class Engine(NamedTuple):
    """One engine: its jobs and its state, without the heap of ends, which numba cannot keep between two calls. `over`: jobs as they end."""

    jobs: Jobs
    costs: StepCosts
    limits: EngineLimits
    launching: Launching
    times: Times
    busy: Floats
    clock: Floats
    state: Ints
    work: Floats
    over: Ints


@compiled
def serve(jobs: Jobs, rules: Rules, times: Times, busy: Floats) -> None:
    """Run the engine until its last job is done; fills `times` and adds to `busy`."""
    ends = [(0, 0)]
    ends.pop()
    engine = Engine(
        jobs,
        rules.costs,
        rules.limits,
        rules.launching,
        times,
        busy,
        zeros(CLOCK_COLUMNS),
        whole_zeros(STATE_COLUMNS),
        zeros(WORK_COLUMNS),
        whole_zeros(len(jobs.ready)),
    )
    engine.state[PARTIAL] = NOBODY
    engine.state[KNOWN] = len(jobs.ready)
    run(engine, ends, inf)


@compiled
def run(engine: Engine, ends: Ends, until: float) -> None:
    """Take steps until all known jobs are done, or until the next step would begin at `until` or later."""
    state, launches = engine.state, len(engine.launching.ms) > 0
    while state[DONE] < state[KNOWN] and next_start(engine) < until:
        _begin_step(engine)
        if state[PARTIAL] == NOBODY and not _admissible(engine, engine.limits.batched_tokens - state[DECODING]):
            state[FRESH], state[PAST] = state[STARTED], state[DONE]
            _decode_only(engine, ends[0][0], until)
        else:
            before, partial = state[ADMITTED], state[PARTIAL]
            _fill_step(engine)
            launched = _launched(engine) if launches else 0.0
            if launched > 0:
                _look_back(engine, launched)
            state[FRESH], state[PAST] = state[STARTED], state[DONE]
            end = engine.clock[NOW] + step_ms(engine.costs, engine.work, engine.busy) * 1e-3
            engine.clock[NOW] = max(end, launched + engine.launching.tail) if launched > 0 else end
            engine.clock[BEHIND] += state[DECODING]
            state[STEP] += 1
            _start_answers(engine, ends, before, partial)
        _end_answers(engine, ends)


@compiled
def next_start(engine: Engine) -> float:
    """When the next step begins, if there is anything to do."""
    state, now = engine.state, engine.clock[NOW]
    if state[DECODING] > 0 or state[PARTIAL] != NOBODY or state[ADMITTED] < state[ARRIVED]:
        return float(now)
    return float(max(now, engine.jobs.ready[state[ARRIVED]]))


@compiled
def _begin_step(engine: Engine) -> None:
    """Take in requests that have come. With asynchronous scheduling a step is planned while the one before it runs."""
    clock, state, ready = engine.clock, engine.state, engine.jobs.ready
    running = state[DECODING] > 0 or state[PARTIAL] != NOBODY
    if not running and state[ADMITTED] == state[ARRIVED]:
        clock[NOW] = max(clock[NOW], ready[state[ARRIVED]])
    planned = max(clock[BEGAN], clock[LAUNCHED]) if running and engine.limits.async_scheduling else clock[NOW]
    clock[BEGAN], clock[PLANNED] = clock[NOW], planned
    while state[ARRIVED] < state[KNOWN] and ready[state[ARRIVED]] <= planned:
        state[ARRIVED] += 1


@compiled
def _launched(engine: Engine) -> float:
    """When the processor has launched this step, if it launches it kernel by kernel; else 0. It launches one step after another."""
    launching, clock = engine.launching, engine.clock
    tokens = engine.work[TOKENS] + engine.work[SINGLES]
    if engine.work[TOKENS] == 0 or tokens <= launching.graph_tokens:
        return 0.0
    clock[LAUNCHED] = clock[PLANNED] + _launch_ms(launching, clock[PLANNED]) * 1e-3
    return float(clock[LAUNCHED])


@compiled
def _launch_ms(launching: Launching, at: float) -> float:
    """The speed of the processor at a time (s)."""
    return float(launching.ms[int(_place(floor(at / launching.period), launching.engine) * len(launching.ms))])


@compiled
def _look_back(engine: Engine, launched: float) -> None:
    """Tokens of the step before reach their clients when the next one is launched, if that is planned while the one before runs."""
    state, times = engine.state, engine.times
    if launched > engine.clock[NOW] and engine.clock[PLANNED] < engine.clock[NOW]:
        for job in range(state[FRESH], state[STARTED]):
            times.first[job] = max(times.first[job], launched)
        for number in range(state[PAST], state[DONE]):
            job = engine.over[number]
            times.last[job] = max(times.last[job], launched)


@compiled
def _admissible(engine: Engine, left: int) -> bool:
    """Whether the next request that waits may join a step in which so many tokens are left."""
    state, jobs = engine.state, engine.jobs
    job = state[ADMITTED]
    if job == state[ARRIVED] or left <= 0 or state[DECODING] + state[COMPLETED] >= engine.limits.sequences:
        return False
    return bool(state[RESERVED] + jobs.prompt[job] + jobs.output[job] <= engine.limits.kv_tokens)


@compiled
def _decode_only(engine: Engine, ending: int, until: float) -> None:
    """All steps until an answer ends, with the step `ending`, or the next request could join; none begins at `until` or later."""
    clock, state, costs, ready = engine.clock, engine.state, engine.costs, engine.jobs.ready
    batch = state[DECODING]
    first = costs.decode_base + costs.decode_sequence * batch + costs.decode_context * clock[BEHIND]
    growth = costs.decode_context * batch
    steps = ending - state[STEP]
    if until < inf:
        steps = min(steps, max(1, _steps_within((until - clock[NOW]) * 1e3, first, growth)))
    if state[ADMITTED] == state[ARRIVED] and state[ARRIVED] < state[KNOWN]:
        due = (ready[state[ARRIVED]] - clock[NOW]) * 1e3
        steps = min(steps, max(1, _steps_within(due, first, growth) + int(engine.limits.async_scheduling)))
    took = steps * first + growth * steps * (steps - 1) / 2
    clock[BEGAN] = clock[NOW] + (took - first - growth * (steps - 1)) * 1e-3
    clock[NOW] += took * 1e-3
    clock[BEHIND] += batch * steps
    state[STEP] += steps
    engine.busy[DECODES] += took
    engine.busy[BATCH] += took * batch


@compiled
def _steps_within(due: float, first: float, growth: float) -> int:
    """The least number of steps that together take at least `due` ms; the first takes `first`, each next one `growth` longer."""
    if due <= 0:
        return 0
    slope = first - growth / 2
    steps = int(2 * due / (slope + sqrt(slope * slope + 2 * growth * due)))
    while steps * first + growth * steps * (steps - 1) / 2 < due:
        steps += 1
    return steps


@compiled
def _fill_step(engine: Engine) -> None:
    """The work of a step: one token per decoding sequence, then the prompt begun before, then new ones while tokens are left."""
    state, work, jobs = engine.state, engine.work, engine.jobs
    clear(work)
    work[SINGLES], work[CONTEXT] = state[DECODING], engine.clock[BEHIND]
    left = engine.limits.batched_tokens - state[DECODING]
    state[COMPLETED] = 0
    if state[PARTIAL] != NOBODY:
        left -= _chunk(engine, left)
    while state[PARTIAL] == NOBODY and _admissible(engine, left):
        job = state[ADMITTED]
        state[ADMITTED] += 1
        state[RESERVED] += jobs.prompt[job] + jobs.output[job]
        state[PARTIAL], state[COMPUTED] = job, jobs.external[job]
        work[STALL] += jobs.stall[job]
        left -= _chunk(engine, left)


@compiled
def _chunk(engine: Engine, left: int) -> int:
    """Compute as much of the current prompt as the step has tokens for."""
    state = engine.state
    prompt = engine.jobs.prompt[state[PARTIAL]]
    tokens = min(prompt - state[COMPUTED], left)
    add_chunk(engine.work, tokens, state[COMPUTED])
    state[COMPUTED] += tokens
    if state[COMPUTED] == prompt:
        state[PARTIAL] = NOBODY
        state[COMPLETED] += 1
    return int(tokens)


@compiled
def _start_answers(engine: Engine, ends: Ends, before: int, partial: int) -> None:
    """First tokens of the prompts that this step completed: `partial`, begun in an earlier step, and those admitted since `before`."""
    state = engine.state
    if partial != NOBODY and state[PARTIAL] != partial:
        _start(engine, ends, partial)
    for job in range(before, state[ADMITTED]):
        if state[PARTIAL] != job:
            _start(engine, ends, job)
    state[COMPLETED] = 0


@compiled
def _start(engine: Engine, ends: Ends, job: int) -> None:
    jobs, state = engine.jobs, engine.state
    engine.times.first[job] = engine.clock[NOW]
    state[STARTED] += 1
    heappush(ends, (int(state[STEP] + jobs.output[job] - 1), int(job)))
    state[DECODING] += 1
    engine.clock[BEHIND] += jobs.prompt[job]


@compiled
def _end_answers(engine: Engine, ends: Ends) -> None:
    """Last tokens: their sequences leave the batch and give their KV back."""
    jobs, state = engine.jobs, engine.state
    while len(ends) > 0 and ends[0][0] <= state[STEP]:
        job = heappop(ends)[1]
        engine.times.last[job] = engine.clock[NOW]
        engine.over[state[DONE]] = job
        state[DECODING] -= 1
        state[DONE] += 1
        state[RESERVED] -= jobs.prompt[job] + jobs.output[job]
        engine.clock[BEHIND] -= jobs.prompt[job] + jobs.output[job] - 1
