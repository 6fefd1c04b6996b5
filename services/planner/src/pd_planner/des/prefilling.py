"""Prefill engines: batches of prompts one after the other, and KV that goes to the decode engines.

With a connector that pushes, a decode engine takes one request's KV after another from all senders. This couples the prefill engines, so
their steps are simulated in order of time.
"""

from heapq import heappop, heappush
from typing import NamedTuple

from pd_planner.des.compiled import compiled, copied, inlined, whole_zeros, zeros
from pd_planner.des.model import TRANSFER, EngineLimits, Floats, Ints, SendCosts, StepCosts
from pd_planner.des.steps import WORK_COLUMNS, add_chunk, clear, step_ms
from pd_simulator.kv_blocks import blocks_of

_blocks_of = compiled(blocks_of)


class Prompts(NamedTuple):
    """What the prefill engines get.

    Attributes:
        ready: seconds; `cached` tokens of each prompt need no compute.
        decode: the decode engine that each goes to.
        queues: requests by engine, in the order in which they become ready; engine e has `queues[begins[e]:begins[e + 1]]`.
    """

    ready: Floats
    prompt: Ints
    cached: Ints
    decode: Ints
    queues: Ints
    begins: Ints


class PrefillModel(NamedTuple):
    """What a step costs and holds, and how many decode engines there are."""

    costs: StepCosts
    send: SendCosts
    limits: EngineLimits
    decodes: int


class Handed(NamedTuple):
    """Results of the loop: when prefill answers each request, and when decode has its KV, seconds."""

    answered: Floats
    here: Floats


class Fleet(NamedTuple):
    """The prefill engines: what they have to do, and their state.

    Attributes:
        head, held: of each engine, the next request in its queue, and the first whose answer is held back.
        began, half: when its last step began, and whether that left a prompt half computed.
        computed: tokens of each prompt that are computed.
        receiver_free, reached: of each decode engine, when it can take the next KV, and which step sent it some last.
    """

    prompts: Prompts
    costs: StepCosts
    send: SendCosts
    limits: EngineLimits
    handed: Handed
    busy: Floats
    head: Ints
    held: Ints
    began: Floats
    half: Ints
    computed: Ints
    receiver_free: Floats
    reached: Ints
    work: Floats


@compiled
def prefill(prompts: Prompts, model: PrefillModel, handed: Handed, busy: Floats) -> None:
    """Run all prefill engines until every prompt is computed."""
    engines = len(prompts.begins) - 1
    fleet = Fleet(
        prompts,
        model.costs,
        model.send,
        model.limits,
        handed,
        busy,
        copied(prompts.begins, 0, engines),
        copied(prompts.begins, 0, engines),
        zeros(engines),
        whole_zeros(engines),
        copied(prompts.cached, 0, len(prompts.cached)),
        zeros(model.decodes),
        whole_zeros(model.decodes),
        zeros(WORK_COLUMNS),
    )
    starts = [(0.0, 0)]
    starts.pop()
    for engine in range(engines):
        if prompts.begins[engine] < prompts.begins[engine + 1]:
            heappush(starts, (float(prompts.ready[prompts.queues[prompts.begins[engine]]]), engine))
    steps = 0
    while len(starts) > 0:
        start, engine = heappop(starts)
        steps += 1
        end = _step(fleet, engine, start, steps)
        head = fleet.head[engine]
        if head < prompts.begins[engine + 1]:
            follows = end if fleet.half[engine] else max(end, prompts.ready[prompts.queues[head]])
            heappush(starts, (float(follows), engine))


@inlined
def _step(fleet: Fleet, engine: int, start: float, number: int) -> float:
    """One step of one engine; returns when it ends."""
    first = fleet.head[engine]
    _fill(fleet, engine, start)
    computing = step_ms(fleet.costs, fleet.work, fleet.busy[engine])
    computed = start + (computing + _sending(fleet, engine, first, computing, number)) * 1e-3
    end = _deliver(fleet, engine, first, start, computed)
    fleet.busy[engine][TRANSFER] += (end - start) * 1e3 - computing
    _answer(fleet, engine, first, end)
    return end


@inlined
def _fill(fleet: Fleet, engine: int, start: float) -> None:
    """Choose the prompts of a step and book them as computed; `head` moves behind those that it completes."""
    prompts, limits = fleet.prompts, fleet.limits
    clear(fleet.work)
    ongoing = fleet.half[engine] == 1
    planned = fleet.began[engine] if ongoing and limits.async_scheduling else start
    fleet.began[engine] = start
    fleet.half[engine] = 0
    first = fleet.head[engine]
    position, left, reserved = first, limits.batched_tokens, 0
    while position < prompts.begins[engine + 1] and left > 0 and position - first < limits.sequences:
        job = prompts.queues[position]
        needed = prompts.prompt[job] - fleet.computed[job]
        reserved += _blocks_of(prompts.prompt[job])
        if not ongoing and (prompts.ready[job] > planned or reserved > limits.kv_blocks):
            break
        if needed > left and not limits.chunked:
            break
        tokens = min(needed, left)
        add_chunk(fleet.work, tokens, fleet.computed[job])
        fleet.computed[job] += tokens
        left -= tokens
        ongoing = False
        if tokens < needed:
            fleet.half[engine] = 1
            break
        position += 1
    fleet.head[engine] = position


@inlined
def _sending(fleet: Fleet, engine: int, first: int, computing: float, number: int) -> float:
    """What sending the prompts that a step completed adds to it, milliseconds."""
    prompts, send = fleet.prompts, fleet.send
    count = fleet.head[engine] - first
    if count == 0:
        return 0.0
    peers, tokens = 0, 0
    for position in range(first, fleet.head[engine]):
        job = prompts.queues[position]
        tokens += prompts.prompt[job]
        if fleet.reached[prompts.decode[job]] != number:
            fleet.reached[prompts.decode[job]] = number
            peers += 1
    floor = send.floor_per_step + (send.floor + send.floor_peer * (peers - 1)) * count
    return float(max(0.0, floor - computing) + send.tail + send.tail_token * tokens)


@inlined
def _deliver(fleet: Fleet, engine: int, first: int, start: float, end: float) -> float:
    """When decode has the KV of each prompt that a step completed; returns when the step ends, which may wait for that."""
    prompts, send, here = fleet.prompts, fleet.send, fleet.handed.here
    after = end
    for position in range(first, fleet.head[engine]):
        job = prompts.queues[position]
        receive = send.receive + send.receive_token * prompts.prompt[job]
        here[job] = end
        if receive > 0:
            peer = prompts.decode[job]
            here[job] = max(end if send.beside else start, fleet.receiver_free[peer]) + receive * 1e-3
            fleet.receiver_free[peer] = here[job]
            after = max(after, here[job])
    return end if send.beside else after


@inlined
def _answer(fleet: Fleet, engine: int, first: int, end: float) -> None:
    """Answer the requests held back before, and those that this step completed, unless they are held back until the next step ends."""
    prompts, head = fleet.prompts, fleet.head[engine]
    for position in range(fleet.held[engine], head):
        fleet.handed.answered[prompts.queues[position]] = end
    more = head < prompts.begins[engine + 1]
    late = fleet.send.late and more and (fleet.half[engine] == 1 or prompts.ready[prompts.queues[head]] <= end)
    fleet.held[engine] = first if late else head


@compiled
def fetch(asked: Floats, order: Ints, decode: Ints, receive: Floats, decodes: int) -> Floats:
    """When each decode engine has fetched its KV (seconds): one request after another in `order`; each takes `receive` ms."""
    free: Floats = zeros(decodes)
    fetched: Floats = zeros(len(asked))
    for job in order:
        engine = decode[job]
        free[engine] = max(free[engine], asked[job]) + receive[job] * 1e-3
        fetched[job] = free[engine]
    return fetched
