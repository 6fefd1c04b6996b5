"""One engine that writes answers, plain or decode: continuous batching from its first request to its last token.

Steps that only decode are taken together: until the next sequence ends, the next request could join, or there are no blocks of KV for all,
each step is longer than the one before by the same amount, so their times are a closed form. The work is proportional to the number of requests
and preemptions, not of tokens.
"""

from heapq import heappop, heappush
from math import floor, inf, sqrt
from typing import NamedTuple

from pd_planner.des.compiled import compiled, inlined, whole_zeros, zeros
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
from pd_simulator.kv_blocks import BLOCK_TOKENS, blocks_of
from pd_simulator.steps.launching import place

# `clock`, seconds but for the third: now, when the last step began, the tokens that the decoding sequences look back on, when the next step
# was planned, and when the processor had launched the last step that it launched kernel by kernel.
NOW, BEGAN, BEHIND, PLANNED, LAUNCHED = range(5)
# `state`: sequences that decode, requests that have come, those ever admitted, steps so far, blocks that those that run may come to need, requests
# done; the request whose prompt is computed in part, how much of it, how many prompts this step completes, and how many requests there are; how
# many have their first token; and how many had it, and how many were done, before the last step; blocks of the prompts that this step completes;
# how high `Running.order` and `Running.waiting` are filled; sequences that ended with the last step and are still there while the next one is
# planned, and their blocks.
(
    DECODING,
    ARRIVED,
    ADMITTED,
    STEP,
    RESERVED,
    DONE,
    PARTIAL,
    COMPUTED,
    COMPLETED,
    KNOWN,
    STARTED,
    FRESH,
    PAST,
    FILLED,
    LATEST,
    PREEMPTED,
    ENDED,
    HELD,
) = range(18)
CLOCK_COLUMNS, STATE_COLUMNS = 5, 18
_place, _blocks_of = compiled(place), compiled(blocks_of)


Ends = list[tuple[int, int]]  # a heap: after which step which job ends


class Running(NamedTuple):
    """What preemption needs to know.

    Attributes:
        order: jobs as they were admitted; some of them have ended.
        waiting: preempted jobs, the one that comes first on top.
        written: output tokens of each job before it was preempted.
        ends: after which step each job that decodes will end; 0 if it was preempted, negative if it has ended.
        phases: sequences that decode, by (tokens that one looks back on − steps so far) modulo the size of a block; this does not change as they
            grow, and says in which steps they need a new block.
    """

    order: Ints
    waiting: Ints
    written: Ints
    ends: Ints
    phases: Ints


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
    running: Running


@compiled
def serve(jobs: Jobs, rules: Rules, times: Times, busy: Floats) -> None:
    """Run the engine until its last job is done; fills `times` and adds to `busy`."""
    ends = [(0, 0)]
    ends.pop()
    count = len(jobs.ready)
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
        whole_zeros(count),
        Running(
            whole_zeros(count), whole_zeros(count), whole_zeros(count), whole_zeros(count), whole_zeros(BLOCK_TOKENS)
        ),
    )
    engine.state[PARTIAL] = NOBODY
    engine.state[KNOWN] = count
    run(engine, ends, inf)


@inlined
def run(engine: Engine, ends: Ends, until: float) -> None:
    """Take steps until all known jobs are done, or until the next step would begin at `until` or later."""
    state, launches = engine.state, len(engine.launching.ms) > 0
    while state[DONE] < state[KNOWN] and next_start(engine) < until:
        _begin_step(engine)
        crowded = state[RESERVED] + state[HELD] > engine.limits.kv_blocks
        preempted = crowded and _make_room(engine)
        if preempted and state[DECODING] == 0 and state[PARTIAL] == NOBODY:
            # Nothing is left to run beside the sequences that ended: the step is planned again without them.
            state[ENDED] = state[HELD] = 0
            continue
        if state[PARTIAL] == NOBODY and (
            preempted or not _admissible(engine, engine.limits.batched_tokens - state[DECODING])
        ):
            state[FRESH], state[PAST] = state[STARTED], state[DONE]
            steps = ends[0][0] - state[STEP]
            if preempted or (state[ENDED] > 0 and (crowded or _next_waiting(engine) != NOBODY)):
                steps = 1  # the next step has more room
            elif crowded:
                steps = min(steps, _steps_with_room(engine))
            _decode_only(engine, steps, until)
        else:
            before, partial = state[LATEST], state[PARTIAL]
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
        state[ENDED] = state[HELD] = 0
        _end_answers(engine, ends)


@inlined
def next_start(engine: Engine) -> float:
    """When the next step begins, if there is anything to do."""
    state, now = engine.state, engine.clock[NOW]
    if state[DECODING] > 0 or state[PARTIAL] != NOBODY or state[ADMITTED] < state[ARRIVED] or state[PREEMPTED] > 0:
        return float(now)
    return float(max(now, engine.jobs.ready[state[ARRIVED]]))


@inlined
def _begin_step(engine: Engine) -> None:
    """Take in requests that have come. With asynchronous scheduling a step is planned while the one before it runs."""
    clock, state, ready = engine.clock, engine.state, engine.jobs.ready
    running = state[DECODING] > 0 or state[PARTIAL] != NOBODY
    if not running and state[ADMITTED] == state[ARRIVED] and state[PREEMPTED] == 0:
        clock[NOW] = max(clock[NOW], ready[state[ARRIVED]])
    if not running:
        state[ENDED] = state[HELD] = 0
    planned = max(clock[BEGAN], clock[LAUNCHED]) if running and engine.limits.async_scheduling else clock[NOW]
    clock[BEGAN], clock[PLANNED] = clock[NOW], planned
    while state[ARRIVED] < state[KNOWN] and ready[state[ARRIVED]] <= planned:
        state[ARRIVED] += 1


@inlined
def _launched(engine: Engine) -> float:
    """When the processor has launched this step, if it launches it kernel by kernel; else 0. It launches one step after another."""
    launching, clock = engine.launching, engine.clock
    tokens = engine.work[TOKENS] + engine.work[SINGLES]
    if engine.work[TOKENS] == 0 or tokens <= launching.graph_tokens:
        return 0.0
    clock[LAUNCHED] = clock[PLANNED] + _launch_ms(launching, clock[PLANNED]) * 1e-3
    return float(clock[LAUNCHED])


@inlined
def _launch_ms(launching: Launching, at: float) -> float:
    """The speed of the processor at a time (s)."""
    return float(launching.ms[int(_place(floor(at / launching.period), launching.engine) * len(launching.ms))])


@inlined
def _look_back(engine: Engine, launched: float) -> None:
    """Tokens of the step before reach their clients when the next one is launched, if that is planned while the one before runs."""
    state, times = engine.state, engine.times
    if launched > engine.clock[NOW] and engine.clock[PLANNED] < engine.clock[NOW]:
        for job in range(state[FRESH], state[STARTED]):
            times.first[job] = max(times.first[job], launched)
        for number in range(state[PAST], state[DONE]):
            job = engine.over[number]
            times.last[job] = max(times.last[job], launched)


@inlined
def _next_waiting(engine: Engine) -> int:
    """The request that is admitted next, if any waits: the one preempted last, or the one that came first."""
    state = engine.state
    if state[PREEMPTED] > 0:
        return int(engine.running.waiting[state[PREEMPTED] - 1])
    return int(state[ADMITTED]) if state[ADMITTED] < state[ARRIVED] else NOBODY


@inlined
def _admissible(engine: Engine, left: int) -> bool:
    """Whether the next request that waits may join a step in which so many tokens are left."""
    state, jobs, room = engine.state, engine.jobs, engine.limits.kv_blocks
    job = _next_waiting(engine)
    if job == NOBODY or left <= 0 or state[DECODING] + state[COMPLETED] + state[ENDED] >= engine.limits.sequences:
        return False
    prompt = jobs.prompt[job]
    room -= state[HELD]
    if state[RESERVED] + _blocks_of(prompt + jobs.output[job]) <= room:
        return True
    return bool(_used(engine, 1) + state[FILLED] + _blocks_of(prompt + engine.running.written[job]) <= room)


@inlined
def _used(engine: Engine, further: int) -> int:
    """Blocks of the sequences that decode, after so many further steps."""
    state, phases = engine.state, engine.running.phases
    tokens = int(engine.clock[BEHIND]) + state[DECODING] * further
    for phase in range(BLOCK_TOKENS):
        tokens += phases[phase] * (-(phase + state[STEP] + further) % BLOCK_TOKENS)
    return int(tokens // BLOCK_TOKENS)


@inlined
def _make_room(engine: Engine) -> bool:
    """Preempt the requests admitted last, until there are blocks for the next step of all others; returns whether there were any."""
    state, jobs, order = engine.state, engine.jobs, engine.running.order
    needed, preempted = _used(engine, 1) + state[HELD], False
    if state[PARTIAL] != NOBODY:
        prompt = jobs.prompt[state[PARTIAL]] + engine.running.written[state[PARTIAL]]
        tokens = min(prompt, state[COMPUTED] + engine.limits.batched_tokens - state[DECODING])
        needed += _blocks_of(tokens)
    while needed > engine.limits.kv_blocks:
        state[LATEST] -= 1
        job = order[state[LATEST]]
        if state[ENDED] > 0 and engine.running.ends[job] == -state[STEP]:
            preempted = True  # nobody waits for it: it has all its tokens
            needed -= _let_go(engine, job)
            continue
        if job == state[PARTIAL]:
            state[PARTIAL] = NOBODY
            needed = _used(engine, 1) + state[HELD]
        elif engine.running.ends[job] > state[STEP]:
            needed -= _stop_decoding(engine, job)
        else:
            continue
        state[RESERVED] -= _blocks_of(jobs.prompt[job] + jobs.output[job])
        engine.running.waiting[state[PREEMPTED]] = job
        state[PREEMPTED] += 1
        engine.times.preempted[job] += 1
        preempted = True
    return preempted


@inlined
def _let_go(engine: Engine, job: int) -> int:
    """Forget a sequence that ended with the last step; returns how many blocks it still had."""
    state = engine.state
    blocks = int(_blocks_of(engine.jobs.prompt[job] + engine.jobs.output[job] - 1))
    state[ENDED] -= 1
    state[HELD] -= blocks
    return blocks


@inlined
def _stop_decoding(engine: Engine, job: int) -> int:
    """Take a sequence out of the batch; returns how many blocks it would have had after the next step."""
    state, running = engine.state, engine.running
    running.written[job] = engine.jobs.output[job] - (running.ends[job] - state[STEP])
    running.ends[job] = 0
    behind = engine.jobs.prompt[job] + running.written[job] - 1
    running.phases[(behind - state[STEP]) % BLOCK_TOKENS] -= 1
    engine.clock[BEHIND] -= behind
    state[DECODING] -= 1
    return int(_blocks_of(behind + 1))


@inlined
def _steps_with_room(engine: Engine) -> int:
    """How many steps the sequences that decode can take before one of them finds no block."""
    state, phases = engine.state, engine.running.phases
    free = engine.limits.kv_blocks - _used(engine, 0)
    rounds = free // state[DECODING]  # in so many steps as a block has tokens, each sequence takes one block
    free -= rounds * state[DECODING]
    steps = rounds * BLOCK_TOKENS
    while free >= phases[-(state[STEP] + steps) % BLOCK_TOKENS]:
        free -= phases[-(state[STEP] + steps) % BLOCK_TOKENS]
        steps += 1
    return int(steps)


@inlined
def _decode_only(engine: Engine, steps: int, until: float) -> None:
    """At most so many steps, and fewer if the next request could join before; none begins at `until` or later."""
    clock, state, costs, ready = engine.clock, engine.state, engine.costs, engine.jobs.ready
    batch = state[DECODING]
    first = costs.decode_base + costs.decode_sequence * batch + costs.decode_context * clock[BEHIND]
    growth = costs.decode_context * batch
    if until < inf:
        steps = min(steps, max(1, _steps_within((until - clock[NOW]) * 1e3, first, growth)))
    if state[ADMITTED] == state[ARRIVED] and state[ARRIVED] < state[KNOWN] and state[PREEMPTED] == 0:
        due = (ready[state[ARRIVED]] - clock[NOW]) * 1e3
        steps = min(steps, max(1, _steps_within(due, first, growth) + int(engine.limits.async_scheduling)))
    took = steps * first + growth * steps * (steps - 1) / 2
    clock[BEGAN] = clock[NOW] + (took - first - growth * (steps - 1)) * 1e-3
    clock[NOW] += took * 1e-3
    clock[BEHIND] += batch * steps
    state[STEP] += steps
    engine.busy[DECODES] += took
    engine.busy[BATCH] += took * batch


@inlined
def _steps_within(due: float, first: float, growth: float) -> int:
    """The least number of steps that together take at least `due` ms; the first takes `first`, each next one `growth` longer."""
    if due <= 0:
        return 0
    slope = first - growth / 2
    steps = int(2 * due / (slope + sqrt(slope * slope + 2 * growth * due)))
    while steps * first + growth * steps * (steps - 1) / 2 < due:
        steps += 1
    return steps


@inlined
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
        job = _next_waiting(engine)
        if state[PREEMPTED] > 0:
            state[PREEMPTED] -= 1
        else:
            state[ADMITTED] += 1
        engine.running.order[state[LATEST]] = job
        state[LATEST] += 1
        state[RESERVED] += _blocks_of(jobs.prompt[job] + jobs.output[job])
        state[PARTIAL], state[COMPUTED] = job, 0
        if engine.limits.loads_again or engine.times.preempted[job] == 0:
            state[COMPUTED] = jobs.external[job]
            work[STALL] += jobs.stall[job]
        left -= _chunk(engine, left)


@inlined
def _chunk(engine: Engine, left: int) -> int:
    """Compute as much of the current prompt, and of what was written before a preemption, as the step has tokens for."""
    state = engine.state
    prompt = engine.jobs.prompt[state[PARTIAL]] + engine.running.written[state[PARTIAL]]
    tokens = min(prompt - state[COMPUTED], left)
    add_chunk(engine.work, tokens, state[COMPUTED])
    state[COMPUTED] += tokens
    if state[COMPUTED] == prompt:
        state[PARTIAL] = NOBODY
        state[COMPLETED] += 1
        state[FILLED] += _blocks_of(prompt)
    return int(tokens)


@inlined
def _start_answers(engine: Engine, ends: Ends, before: int, partial: int) -> None:
    """Tokens of the prompts that this step completed: `partial`, begun in an earlier step, and those admitted since `before`."""
    state = engine.state
    if partial != NOBODY and state[PARTIAL] != partial:
        _start(engine, ends, partial)
    for number in range(before, state[LATEST]):
        job = engine.running.order[number]
        if state[PARTIAL] != job:
            _start(engine, ends, job)
    state[COMPLETED] = state[FILLED] = 0


@inlined
def _start(engine: Engine, ends: Ends, job: int) -> None:
    state, running, written = engine.state, engine.running, engine.running.written[job]
    if written == 0:
        engine.times.first[job] = engine.clock[NOW]
        state[STARTED] += 1
    end, behind = state[STEP] + engine.jobs.output[job] - written - 1, engine.jobs.prompt[job] + written
    heappush(ends, (int(end), int(job)))
    running.ends[job] = end
    running.phases[(behind - state[STEP]) % BLOCK_TOKENS] += 1
    state[DECODING] += 1
    engine.clock[BEHIND] += behind


@inlined
def _end_answers(engine: Engine, ends: Ends) -> None:
    """Last tokens: their sequences leave the batch and give their KV back, at once unless the next step was planned while this one ran."""
    jobs, state = engine.jobs, engine.state
    while len(ends) > 0 and ends[0][0] <= state[STEP]:
        end, job = heappop(ends)
        if engine.running.ends[job] != end:
            continue  # it was preempted, and ends later or has ended
        engine.running.ends[job] = -end
        engine.times.last[job] = engine.clock[NOW]
        engine.over[state[DONE]] = job
        state[DECODING] -= 1
        state[DONE] += 1
        state[RESERVED] -= _blocks_of(jobs.prompt[job] + jobs.output[job])
        behind = jobs.prompt[job] + jobs.output[job] - 1
        engine.running.phases[(behind - state[STEP]) % BLOCK_TOKENS] -= 1
        engine.clock[BEHIND] -= behind
        if engine.limits.async_scheduling:
            state[ENDED] += 1
            state[HELD] += _blocks_of(behind)
