"""A question, and the choices that answer it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pd_analysis.words.language import Sentence
from pd_contracts.names import Connector
from pd_planner.profile.trust import Trust
from pd_planner.search.capacity import Setting
from pd_planner.search.fleet import Fleet, Operation
from pd_simulator.steps.engines import Order


class Objective(StrEnum):
    """The objective of a plan."""

    GPUS = "gpus"
    GOODPUT = "goodput"
    ENERGY = "energy"


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        gpus: how many there may be; None if that is open.
        rate: requests per second to be served; None asks for as many as the GPUs carry.
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
        refusal: why it cannot be the answer; None if it can.
    """

    fleet: Fleet
    operation: Operation
    trust: Trust
    doubt: float
    refusal: Sentence | None = None

    @property
    def plain(self) -> bool:
        """Whether its engines are plain."""
        return self.fleet.candidate.plain

    @property
    def adaptive(self) -> bool:
        """Whether its engines get their roles by load."""
        return self.fleet.candidate.adaptive


@dataclass(frozen=True)
class Answer:
    """All choices, the wanted ones first; and why some deployments were not even tried, where some were not."""

    question: Question
    choices: list[Choice]
    left_out: Sequence[Sentence] = ()

    @property
    def best(self) -> Choice:
        return self.choices[0]

    def best_of(self, *, plain: bool) -> Choice | None:
        """The first plain choice, or the first disaggregated one; None if there is none that carries anything."""
        return next((choice for choice in self.fixed if choice.plain is plain and choice.fleet.carries > 0), None)

    @property
    def most_promising(self) -> Choice | None:
        """The first disaggregated choice that can be the answer, were all of them known equally well; None if there is none."""
        able = [choice for choice in self.fixed if not choice.plain and not choice.refusal]
        return min(able, key=lambda choice: rank(self.question, choice), default=None)

    @property
    def fixed(self) -> list[Choice]:
        """Choices whose engines have fixed roles."""
        return [choice for choice in self.choices if not choice.adaptive]

    @property
    def adaptive(self) -> Choice | None:
        """The choice whose engines get their roles by load; None if there is none that carries anything."""
        return next((choice for choice in self.choices if choice.adaptive and choice.fleet.carries > 0), None)

    @property
    def front(self) -> list[Choice]:
        """Choices that no other beats in GPUs, joules and TTFT p99 at once, of those that can be the answer."""
        able = [choice for choice in self.choices if not choice.refusal]
        return [one for one in able if not any(_beats(other, one) for other in able)]


def believed(question: Question, choice: Choice) -> float:
    """The share of its capacity by which a choice is ranked: the lower end of its band, if nothing like it was measured."""
    unsure = choice.trust is Trust.UNCALIBRATED and not question.any_topology
    return 1 - choice.doubt if unsure else 1.0


def rank(question: Question, choice: Choice, share: float = 1.0) -> tuple[float | bool, ...]:
    """Sort by the objective, then by cost, then by simplicity; the better comes first. `share` below 1 makes a choice so much worse."""
    fleet, operation = choice.fleet, choice.operation
    capacity = fleet.per_gpu if question.gpus is None else fleet.capacity
    wanted = {
        Objective.GPUS: (fleet.gpus / share, operation.joules),
        Objective.GOODPUT: (-capacity * share, operation.joules),
        Objective.ENERGY: (operation.joules / share, fleet.gpus),
    }[question.objective]
    return (bool(choice.refusal), *wanted, not choice.plain)


def _key(choice: Choice) -> tuple[float, ...]:
    return (choice.fleet.gpus, choice.operation.joules, choice.operation.latencies["ttft_p99"])


def _beats(one: Choice, other: Choice) -> bool:
    pairs = list(zip(_key(one), _key(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
