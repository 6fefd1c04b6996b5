"""From a question to ranked deployments."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from pd_analysis.words.language import Sentence, ntr, tr
from pd_contracts.names import Connector
from pd_contracts.vllm_releases import LAST_WITH_P2P_NCCL, full
from pd_planner.cores import spread
from pd_planner.des.deployment import refused
from pd_planner.des.prepare import prepare
from pd_planner.profile.trust import trust
from pd_planner.search.candidates import LARGEST_CELL, Candidate, candidates
from pd_planner.search.capacity import ROUGH, capacity
from pd_planner.search.fleet import Fleet, Operation, fitting, needed, operate, single
from pd_planner.search.no_plan import NoPlanError, closest, out_of_reach
from pd_planner.search.question import Answer, Choice, Objective, Question, believed, rank
from pd_planner.search.roles import planned, unable

# Without a rate deployments are shown at this share of what the weaker of the best plain and the best disaggregated one carries.
_SHOWN: Final = 0.8
# Candidates whose rough capacity is below this share of the best are not simulated more carefully.
_NEAR: Final = 0.7


def answer(question: Question, say: Callable[[str], None] = lambda _: None) -> Answer:
    """Search.

    Raises:
        NoPlanError: if nothing meets the limits, fits the budget or stays below the power cap.
    """
    room = LARGEST_CELL if question.gpus is None else question.gpus // question.tensor_parallel
    if room < 1:
        raise NoPlanError(
            ntr(
                "{count} GPU makes no engine of {each}: give more GPUs or lower --tensor-parallel",
                "{count} GPUs make no engine of {each}: give more GPUs or lower --tensor-parallel",
                question.gpus or 0,
                each=question.tensor_parallel,
            )
        )
    cell = min(question.cell, room)
    found, refusal = _servable(question, candidates(cell, question.connectors, question.tensor_parallel, question.p2p))
    if refusal:
        say(tr("left out: {reason}", reason=refusal))
    say(tr("{count} deployments of at most {cell} engines", count=len(found), cell=cell))
    prepare(question.setting.profile, say)
    why_not = unable(question)
    if why_not is None:
        say(tr("engines that get their roles by load"))
    carried = _capacities(question, found, room if why_not is None else 0)
    if not any(carried.values()):
        raise NoPlanError(out_of_reach(question, found))
    fleets = [fleet for candidate, rate in carried.items() if (fleet := _fleet(question, candidate, rate))]
    per_gpu = _rate_per_gpu(fleets)
    choices = _choices(question, fleets, per_gpu)
    ranked = sorted(choices, key=lambda choice: _order(question, choice))
    if all(choice.refusal for choice in ranked):
        raise NoPlanError(closest(question, ranked))
    return Answer(question, ranked, list(filter(None, (_unasked(question), refusal, why_not))))


def _unasked(question: Question) -> Sentence | None:
    """A profile of runs with P2P NCCL alone has no connector that is tried unless it is asked for."""
    if question.connectors or Connector.P2P_NCCL not in question.setting.profile.handoff:
        return None
    return Sentence(
        "separate prefill and decode, because of connectors the profile has only P2P NCCL, which needs vLLM {version}; --connectors p2pnccl plans with it",
        version=full(LAST_WITH_P2P_NCCL),
    )


def _capacities(question: Question, found: Sequence[Candidate], room: int) -> dict[Candidate, float]:
    """The capacity of each candidate: roughly first, then carefully for those near the best; and of adaptive roles, of `room` engines at most."""
    setting = question.setting

    carried = dict(zip(found, spread(lambda one: capacity(setting, one, care=ROUGH), found), strict=True))
    most = max(rate / (candidate.prefills + candidate.others) for candidate, rate in carried.items())
    near = _NEAR * max(rate / candidate.gpus for candidate, rate in carried.items())
    close = [one for one, rate in carried.items() if rate / one.gpus >= near > 0 or (one.plain and rate)]

    def carefully(candidate: Candidate | None) -> tuple[Candidate, float] | None:
        if candidate is None:
            return planned(question, room, most)
        return candidate, capacity(setting, candidate, carried[candidate])

    of_both, *careful = spread(carefully, [None, *close])  # adaptive roles take longest
    return carried | dict(filter(None, (*careful, of_both)))


def _servable(question: Question, every: Iterable[Candidate]) -> tuple[list[Candidate], Sentence | None]:
    """The deployments that can serve the longest request; and why others cannot, if there are such.

    Raises:
        NoPlanError: if none can.
    """
    able: list[Candidate] = []
    why: Sentence | None = None
    for candidate in every:
        refusal = refused(candidate.engines(question.setting.engine), question.setting.traffic.load)
        if refusal:
            why = Sentence(refusal.message, **refusal.holes)
        else:
            able.append(candidate)
    if not able:
        raise NoPlanError(tr("a request of this traffic can never be served: {reason}", reason=why))
    return able, why


def resized(question: Question, choice: Choice, per_gpu: float) -> Choice:
    """The choice with the fleet that it takes if it carries `per_gpu` requests per second per GPU."""
    candidate = choice.fleet.candidate
    fleet = _fleet(question, candidate, per_gpu * candidate.gpus)
    if fleet is None:
        return choice
    operation = choice.operation
    if fleet.cells != choice.fleet.cells:
        operation = operate(question.setting, fleet, operation.rate)
    return replace(choice, fleet=fleet, operation=operation, refusal=_refusal(question, fleet, operation))


def _fleet(question: Question, candidate: Candidate, carries: float) -> Fleet | None:
    candidate, carries = single(candidate, carries)
    smallest = None if question.rate is None else needed(candidate, carries, question.rate, question.headroom)
    if question.rate is not None and (question.objective is not Objective.GOODPUT or question.gpus is None):
        return smallest
    largest = fitting(candidate, carries, question.gpus or candidate.gpus)
    if smallest is not None and largest is not None and largest.cells < smallest.cells:
        return smallest  # which is refused, because it is too large
    return largest or smallest


def _rate_per_gpu(fleets: Sequence[Fleet]) -> float:
    """Requests per second per GPU at which fleets are shown when no rate was asked for."""
    kinds = [f.candidate.plain for f in fleets], [f.candidate.apart for f in fleets]
    best = [max((f.per_gpu for f, is_one in zip(fleets, kind, strict=True) if is_one), default=0.0) for kind in kinds]
    return _SHOWN * min((rate for rate in best if rate > 0), default=max(f.per_gpu for f in fleets))


def _choices(question: Question, fleets: Sequence[Fleet], per_gpu: float) -> list[Choice]:
    """Fleets at the rate of the question, or else at `per_gpu`."""

    def at_its_rate(fleet: Fleet) -> Operation:
        rate = question.rate if question.rate is not None else per_gpu * fleet.gpus
        return operate(question.setting, fleet, rate)

    longest_first = sorted(fleets, key=lambda fleet: not fleet.candidate.adaptive)
    found = dict(zip(map(id, longest_first), spread(at_its_rate, longest_first), strict=True))
    return [_choice(question, fleet, found[id(fleet)]) for fleet in fleets]


def _choice(question: Question, fleet: Fleet, operation: Operation) -> Choice:
    known, doubt = trust(question.setting.profile, fleet.candidate.trust_shape)
    return Choice(fleet, operation, known, doubt, _refusal(question, fleet, operation))


def _refusal(question: Question, fleet: Fleet, operation: Operation) -> Sentence | None:
    if fleet.carries == 0:
        return Sentence("carries nothing within the limits")
    if question.gpus is not None and fleet.gpus > question.gpus:
        return Sentence("needs {gpus} GPUs", gpus=f"{fleet.gpus:,}")
    if question.power_cap_w is not None and operation.total_watts > question.power_cap_w:
        return Sentence("draws {watts} W", watts=f"{operation.total_watts:,.0f}")
    at_this_rate = question.rate is not None or question.objective is Objective.ENERGY
    if at_this_rate and operation.within < question.setting.limits.attainment:
        return Sentence("does not meet the limits at this rate")
    return None


def _order(question: Question, choice: Choice) -> tuple[float | bool, ...]:
    """A deployment of an unmeasured topology is ranked by the lower end of its band, unless `any_topology` is set."""
    return rank(question, choice, believed(question, choice))
