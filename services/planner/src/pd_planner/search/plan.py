"""From a question to ranked deployments."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from pd_contracts.names import Connector
from pd_planner.des.deployment import refused
from pd_planner.profile.trust import Trust, trust
from pd_planner.search.candidates import LARGEST_CELL, Candidate, candidates
from pd_planner.search.capacity import ROUGH, Setting, capacity, run
from pd_planner.search.fleet import Fleet, Operation, fitting, needed, operate, single
from pd_simulator.steps.engines import Order

# Without a rate deployments are shown at this share of what the weaker of the best plain and the best disaggregated one carries.
_SHOWN: Final = 0.8
# What roughly carries less than this part of the best is not looked at more carefully.
_NEAR: Final = 0.7


class Objective(StrEnum):
    """What is wanted most."""

    GPUS = "gpus"
    GOODPUT = "goodput"
    ENERGY = "energy"


class NoPlanError(ValueError):
    """Nothing answers the question; the message says what is in the way, and how far off it is."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        gpus: how many there may be; None if that is open.
        rate: requests a second to be served; None asks for as many as the GPUs carry.
        headroom: share of the capacity that stays free at that rate.
        power_cap_w: watts of all boards at that rate, at most.
        cell: engines that serve each other, at most.
        any_topology: rank deployments of unmeasured topologies like measured ones.
        p2p: when decode hears of a request with P2pConnector, and who writes the first token.
    """

    setting: Setting
    connectors: Sequence[Connector]
    objective: Objective
    gpus: int | None
    rate: float | None
    headroom: float
    power_cap_w: float | None
    cell: int
    tensor_parallel: int = 1
    any_topology: bool = False
    p2p: Order = Order.HAND_OFF


@dataclass(frozen=True)
class Choice:
    """A fleet and what it does.

    Attributes:
        trust, doubt: what its numbers rest on, and the standard deviation of the logarithm of its capacity for that reason.
        refusal: why it cannot be the answer; empty if it can.
    """

    fleet: Fleet
    operation: Operation
    trust: Trust
    doubt: float
    refusal: str = ""

    @property
    def plain(self) -> bool:
        """Whether its engines are plain."""
        return self.fleet.candidate.plain


@dataclass(frozen=True)
class Answer:
    """All choices, the wanted ones first; and why some deployments were not even tried."""

    question: Question
    choices: list[Choice]
    left_out: str = ""

    @property
    def best(self) -> Choice:
        return self.choices[0]

    def best_of(self, *, plain: bool) -> Choice | None:
        """The first plain choice, or the first other one; None if there is none that carries anything."""
        return next((choice for choice in self.choices if choice.plain is plain and choice.fleet.carries > 0), None)

    @property
    def front(self) -> list[Choice]:
        """Choices that no other beats in GPUs, joules and TTFT p99 at once, of those that can be the answer."""
        able = [choice for choice in self.choices if not choice.refusal]
        return [one for one in able if not any(_beats(other, one) for other in able)]


def _key(choice: Choice) -> tuple[float, ...]:
    return (choice.fleet.gpus, choice.operation.joules, choice.operation.latencies["ttft_p99"])


def _beats(one: Choice, other: Choice) -> bool:
    pairs = list(zip(_key(one), _key(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def answer(question: Question, say: Callable[[str], None] = lambda _: None) -> Answer:
    """Search.

    Raises:
        NoPlanError: if nothing meets the limits, fits the budget or stays below the power cap.
    """
    room = LARGEST_CELL if question.gpus is None else question.gpus // question.tensor_parallel
    if room < 1:
        raise NoPlanError(
            f"{question.gpus} GPUs make no engine of {question.tensor_parallel}: give more GPUs or lower --tensor-parallel"
        )
    cell = min(question.cell, room)
    found, refusal = _servable(question, candidates(cell, question.connectors, question.tensor_parallel, question.p2p))
    if refusal:
        say(f"left out: {refusal}")
    say(f"{len(found)} deployments of at most {cell} engines")
    carried = _capacities(question.setting, found)
    if not any(carried.values()):
        raise NoPlanError(_out_of_reach(question, found))
    fleets = [fleet for candidate, rate in carried.items() if (fleet := _fleet(question, candidate, rate))]
    per_gpu = _rate_per_gpu(fleets)
    choices = [_choice(question, fleet, per_gpu) for fleet in fleets]
    ranked = sorted(choices, key=lambda choice: _order(question, choice))
    if all(choice.refusal for choice in ranked):
        raise NoPlanError(_closest(question, ranked))
    return Answer(question, ranked, refusal)


def _capacities(setting: Setting, found: Sequence[Candidate]) -> dict[Candidate, float]:
    """What each carries: roughly first, and those that come near to the best carefully."""
    carried = {candidate: capacity(setting, candidate, care=ROUGH) for candidate in found}
    near = _NEAR * max(rate / candidate.gpus for candidate, rate in carried.items())
    for candidate, rate in carried.items():
        if rate / candidate.gpus >= near > 0 or (candidate.plain and rate):
            carried[candidate] = capacity(setting, candidate, rate)
    return carried


def _servable(question: Question, every: Iterable[Candidate]) -> tuple[list[Candidate], str]:
    """The deployments that can serve the longest request; and why others cannot, if there are such.

    Raises:
        NoPlanError: if none can.
    """
    able, why = [], ""
    for candidate in every:
        refusal = refused(candidate.engines(question.setting.engine), question.setting.traffic.load)
        if refusal:
            why = refusal
        else:
            able.append(candidate)
    if not able:
        raise NoPlanError(f"a request of this traffic can never be served: {why}")
    return able, why


def _fleet(question: Question, candidate: Candidate, carries: float) -> Fleet | None:
    candidate, carries = single(candidate, carries)
    if question.rate is not None:
        return needed(candidate, carries, question.rate, question.headroom)
    return fitting(candidate, carries, question.gpus or candidate.gpus)


def _rate_per_gpu(fleets: Sequence[Fleet]) -> float:
    """Requests per second per GPU at which fleets are shown when no rate was asked for."""
    best = [max((f.per_gpu for f in fleets if f.candidate.plain is plain), default=0.0) for plain in (True, False)]
    return _SHOWN * min(rate for rate in best if rate > 0)


def _choice(question: Question, fleet: Fleet, per_gpu: float) -> Choice:
    rate = question.rate if question.rate is not None else per_gpu * fleet.gpus
    operation = operate(question.setting, fleet, rate)
    known, doubt = trust(question.setting.profile, fleet.candidate.trust_shape)
    return Choice(fleet, operation, known, doubt, _refusal(question, fleet, operation))


def _refusal(question: Question, fleet: Fleet, operation: Operation) -> str:
    if fleet.carries == 0:
        return "carries nothing within the limits"
    if question.gpus is not None and fleet.gpus > question.gpus:
        return f"needs {fleet.gpus} GPUs"
    if question.power_cap_w is not None and operation.total_watts > question.power_cap_w:
        return f"draws {operation.total_watts:,.0f} W"
    at_this_rate = question.rate is not None or question.objective is Objective.ENERGY
    if at_this_rate and operation.within < question.setting.limits.attainment:
        return "does not keep the limits at this rate"
    return ""


def _order(question: Question, choice: Choice) -> tuple[float | bool, ...]:
    """What is wanted first, then what is cheaper, then what is simpler.

    What nobody measured the like of has to be so much better as it may be worse, unless any topology will do.
    """
    fleet, operation = choice.fleet, choice.operation
    unsure = choice.trust is Trust.UNCALIBRATED and not question.any_topology
    share = 1 - choice.doubt if unsure else 1.0
    wanted = {
        Objective.GPUS: (fleet.gpus / share, operation.joules),
        Objective.GOODPUT: (-fleet.capacity * share, operation.joules),
        Objective.ENERGY: (operation.joules / share, fleet.gpus),
    }[question.objective]
    return (bool(choice.refusal), *wanted, not choice.plain)


def _out_of_reach(question: Question, found: Sequence[Candidate]) -> str:
    """Nothing is fast enough even without a queue: say by how much."""
    setting = question.setting
    lone = setting.traffic.rate * 1e-4
    singles = {candidate: candidate for candidate in found if candidate.gpus <= 2 * question.tensor_parallel}
    singles = singles or {found[0]: found[0]}
    parts = []
    for metric, limit in setting.limits.milliseconds.items():
        values = []
        for candidate in singles:
            outcome = run(setting, candidate, lone)
            column = {"ttft": outcome.ttft_ms, "tpot": outcome.tpot_ms, "e2el": outcome.e2el_ms}[metric]
            share = np.sort(column[np.isfinite(column)])
            if share.size:
                values.append(float(share[int(setting.limits.attainment * (share.size - 1))]))
        if values and min(values) > limit:
            parts.append(f"{metric.upper()} is {min(values):,.1f} ms at least, and the limit is {limit:g}")
    what = "; ".join(parts) or "the limits cannot be met together"
    return f"nothing meets {setting.limits.words}, not even without load: {what}"


def _closest(question: Question, ranked: Sequence[Choice]) -> str:
    able = [choice for choice in ranked if choice.fleet.carries > 0]
    reasons = [f"{choice.fleet.label} ({choice.refusal})" for choice in able]
    budget = f"{question.gpus} GPUs" if question.gpus is not None else "any number of GPUs"
    rate = f"{question.rate:g} requests/s" if question.rate is not None else "this traffic"
    cap = f" with {question.power_cap_w:,.0f} W" if question.power_cap_w is not None else ""
    fewest = min((choice.fleet.gpus for choice in able), default=0)
    few = question.gpus is not None and fewest > question.gpus
    needed_ = f"; the fewest are {fewest:,}" if few else ""
    return f"{budget}{cap} cannot serve {rate}: {'; '.join(reasons[:3])}{needed_}"
