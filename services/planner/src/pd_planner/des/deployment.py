"""A whole deployment under a load: which engine gets which request, and the engines one after the other."""

from dataclasses import dataclass
from math import lcm

import numpy as np

from pd_contracts.names import Connector, Role
from pd_planner.des.compiled import column, whole_zeros, zeros
from pd_planner.des.decoding import serve
from pd_planner.des.model import (
    BUSY_COLUMNS,
    EngineLimits,
    Floats,
    Ints,
    Jobs,
    Launching,
    Rules,
    SendCosts,
    StepCosts,
    Times,
)
from pd_planner.des.prefilling import Handed, PrefillModel, Prompts, fetch, prefill
from pd_planner.traffic.load import Load
from pd_simulator.kv_blocks import BLOCK_TOKENS
from pd_simulator.profile import Launch, Profile
from pd_simulator.steps.engines import Engines, Order, Refusal


@dataclass(frozen=True)
class Route:
    """Which prefill engine (of none: 0) and which other engine serve each request."""

    prefill: Ints
    other: Ints


@dataclass(frozen=True)
class Outcome:
    """The outcome of a load, one entry per request; seconds on the load's clock.

    Attributes:
        first, last: when the first and the last token came.
        answered: when prefill had answered; NaN on plain engines.
        busy: one row per engine, prefill engines first: see `model.BUSY_COLUMNS`.
        preempted: how often its engine took a request's KV away for want of room.
    """

    load: Load
    first: Floats
    last: Floats
    answered: Floats
    busy: Floats
    preempted: Ints

    @property
    def ttft_ms(self) -> Floats:
        """Time to first token, milliseconds."""
        return (self.first - self.load.at) * 1e3

    @property
    def tpot_ms(self) -> Floats:
        """Time per output token after the first, milliseconds; NaN for answers of one token."""
        gaps = self.load.output - 1
        return np.where(gaps > 0, (self.last - self.first) * 1e3 / np.maximum(gaps, 1), np.nan)

    @property
    def e2el_ms(self) -> Floats:
        """End-to-end latency, milliseconds."""
        return (self.last - self.load.at) * 1e3


def round_robin(engines: Engines, count: int) -> Route:
    """As `Engines.turn`, for `count` requests."""
    turn = np.arange(count, dtype=np.int64)
    if not engines.prefills:
        return Route(np.zeros(count, np.int64), turn % engines.others)
    cycle = lcm(engines.prefills, engines.others)
    return Route(turn % engines.prefills, (turn + turn // cycle) % engines.others)


def simulate(
    profile: Profile, engines: Engines, load: Load, route: Route | None = None, processors: int = 0
) -> Outcome:
    """Run a load of at least one request.

    Each number of `processors` gives the engines' processors other times to be slow at; see `Launch` of the profile.

    Raises:
        ValueError: if a request could never be served.
    """
    if refusal := refused(engines, load):
        raise ValueError(refusal)
    route = route or round_robin(engines, len(load))
    busy = np.zeros((engines.prefills + engines.others, BUSY_COLUMNS))
    role = Role.DECODE if engines.prefills else Role.COMBINED
    writers = Writers(step_costs(profile, role), limits_of(profile, engines), profile.launch_of(role), processors)
    if not engines.prefills:
        ready = load.at + profile.api_ms / 1e3
        whole = Jobs(ready, load.prompt, load.output, load.cached, np.zeros(len(load)))
        first, last, preempted = _written(whole, route.other, writers, busy)
        return Outcome(load, first, last, np.full(len(load), np.nan), busy, preempted)
    handed = prefilled(profile, engines, load, route, busy[: engines.prefills])
    jobs = _handed_over(profile, engines, load, route, handed)
    further = np.flatnonzero(jobs.output > 0)
    own = Jobs(
        jobs.ready[further], jobs.prompt[further], jobs.output[further], jobs.external[further], jobs.stall[further]
    )
    begun, ended, took = _written(own, route.other[further], writers, busy[engines.prefills :])
    first = handed.answered + profile.handoff_of(engines.connector).first_token_ms / 1e3
    last, preempted = first.copy(), np.zeros(len(load), np.int64)
    last[further], preempted[further] = ended, took
    if engines.order is not Order.HAND_OFF:
        first[further] = begun
    return Outcome(load, first, last, handed.answered, busy, preempted)


@dataclass(frozen=True)
class Writers:
    """What all engines that write answers have in common."""

    costs: StepCosts
    limits: EngineLimits
    launch: Launch
    processors: int


def _written(jobs: Jobs, engine_of: Ints, writers: Writers, busy: Floats) -> Times:
    """First and last tokens of all jobs, on as many engines as `busy` has rows."""
    count = len(jobs.ready)
    times = Times(np.empty(count), np.empty(count), np.empty(count, np.int64))
    for engine in range(len(busy)):
        mine = np.flatnonzero(engine_of == engine)
        mine = mine[np.argsort(jobs.ready[mine], kind="stable")]
        own, used = Times(zeros(len(mine)), zeros(len(mine)), whole_zeros(len(mine))), zeros(BUSY_COLUMNS)
        launching = launching_of(writers.launch, writers.processors * len(busy) + engine)
        rules = Rules(writers.costs, writers.limits, launching)
        serve(Jobs(*(column(each[mine]) for each in jobs)), rules, own, used)
        busy[engine] = used
        for all_of_them, of_one in zip(times, own, strict=True):
            all_of_them[mine] = of_one
    return times


def launching_of(launch: Launch, engine: int) -> Launching:
    """The processor of the engine of this number."""
    values = column(np.array(launch.ms, np.float64))
    return Launching(values, launch.tail_ms / 1e3, launch.period_s, launch.graph_tokens, engine)


def _handed_over(profile: Profile, engines: Engines, load: Load, route: Route, handed: Handed) -> Jobs:
    """What the decode engines get: whole answers, or what follows prefill's token (of an answer of one token: nothing)."""
    handoff = profile.handoff_of(engines.connector, batched=engines.batched)
    prompt, output = load.prompt, load.output
    if engines.order is Order.HAND_OFF:
        prompt, output = prompt + 1, output - 1
    external = prompt - 1
    if engines.order is Order.AFTER:
        ready = _taken_over(profile, engines, load, route, handed)
        ready = ready + (handoff.wait_ms + handoff.wait_per_token_ms * external) / 1e3
    else:
        ready = handed.answered + (handoff.at_once_ms + handoff.at_once_per_token_ms * external) / 1e3
    noticed = np.maximum(0.0, external - handoff.stall_free_tokens)
    return Jobs(ready, prompt, output, external, handoff.stall_ms + handoff.stall_per_token_ms * noticed)


def refused(engines: Engines, load: Load) -> Refusal:
    """Why these engines could never serve one of the requests; empty if they can serve all."""
    longest, largest = int(load.prompt.argmax()), int((load.prompt + load.output).argmax())
    sizes = ((int(load.prompt[number]), int(load.output[number])) for number in (longest, largest))
    return next((why for prompt, output in sizes if (why := engines.refusal(prompt, output))), Refusal())


def prefilled(profile: Profile, engines: Engines, load: Load, route: Route, busy: Floats) -> Handed:
    """When prefill engines have answered, and when their KV is there; `busy` has a row for each and is filled."""
    queues = np.argsort(route.prefill, kind="stable")
    begins = np.searchsorted(route.prefill[queues], np.arange(engines.prefills + 1)).astype(np.int64)
    ready = load.at + profile.api_ms / 1e3
    prompts = Prompts(*(column(each) for each in (ready, load.prompt, load.cached, route.other, queues, begins)))
    handed = Handed(zeros(len(load)), zeros(len(load)))
    limits = limits_of(profile, engines)._replace(chunked=engines.chunked)
    model = PrefillModel(step_costs(profile, Role.PREFILL), _send_costs(profile, engines), limits, engines.others)
    used = column(np.zeros_like(busy))
    prefill(prompts, model, handed, used)
    busy[:] = used
    return Handed(np.asarray(handed.answered), np.asarray(handed.here))


def _taken_over(profile: Profile, engines: Engines, load: Load, route: Route, handed: Handed) -> Floats:
    """When each decode engine has been asked for an answer and has the KV that it needs."""
    asked: Floats = np.maximum(handed.answered + profile.api_ms / 1e3, handed.here)
    if engines.connector is not Connector.NIXL:
        return asked
    handoff = profile.handoff_of(engines.connector)
    receive: Floats = handoff.receive_ms + handoff.receive_per_token_ms * load.prompt.astype(np.float64)
    order = np.argsort(asked, kind="stable")
    taken = fetch(column(asked), column(order), column(route.other), column(receive), engines.others)
    return np.asarray(taken)


def step_costs(profile: Profile, role: Role) -> StepCosts:
    """The profile's step model for one role."""
    prompt, decode, mixed = profile.prefill, profile.decode_of(role), profile.mixed
    return StepCosts(
        prefill_base=prompt.base_ms,
        prefill_token=prompt.per_token_ms,
        prefill_pair=prompt.per_pair_ns * 1e-6,
        decode_base=decode.base_ms,
        decode_sequence=decode.per_sequence_ms,
        decode_context=decode.per_context_token_ms,
        overlap=mixed.overlap_ms,
        mixed_share=mixed.prefill_token_share,
    )


def _send_costs(profile: Profile, engines: Engines) -> SendCosts:
    handoff = profile.handoff_of(engines.connector, batched=engines.batched)
    pushes = engines.connector is Connector.P2P_NCCL
    return SendCosts(
        floor_per_step=handoff.send_floor_per_step_ms,
        floor=handoff.send_floor_ms,
        floor_peer=handoff.send_floor_per_peer_ms,
        tail=handoff.send_tail_ms,
        tail_token=handoff.send_tail_per_token_ms,
        receive=handoff.receive_ms if pushes else 0.0,
        receive_token=handoff.receive_per_token_ms if pushes else 0.0,
        beside=engines.batched,
        late=handoff.late_answers,
    )


def limits_of(profile: Profile, engines: Engines) -> EngineLimits:
    return EngineLimits(
        sequences=engines.max_num_seqs,
        batched_tokens=engines.max_num_batched_tokens,
        kv_blocks=engines.kv_tokens // BLOCK_TOKENS,
        chunked=True,
        async_scheduling=profile.async_scheduling,
        loads_again=engines.loads_again,
    )
