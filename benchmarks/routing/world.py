"""A deployment in virtual time: the planner's engines, and the proxy's own decisions about every request.

Nothing of the rule is written here a second time: the planner's `routed` and the rules below call `pd_routing`, as the proxy does.
"""

# ruff: noqa: INP001  a part of a script

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pd_contracts.names import Connector
from pd_planner.des.routed import Adaptive, serve
from pd_planner.traffic.load import Floats, Load
from pd_routing.adaptive import Mode, Placement, Why, decode_with_least, place, place_local_first
from pd_routing.books import Books
from pd_routing.costs import MARGIN, Costs, read_costs
from pd_routing.predict import ttft_ms
from pd_routing.reject import Way, predict
from pd_routing.view import Objectives, View
from pd_simulator.profile import load_profile
from pd_simulator.steps.engines import Engines

PROFILE: Final = "h200-llama3-8b"
KV_TOKENS: Final = 400_000
H200: Final = load_profile(PROFILE)


@dataclass(frozen=True)
class Policy:
    """How requests are placed.

    Attributes:
        kind: plain, static, local_first or adaptive.
        prefills: with static, how many of the engines only compute prompts.
        reject: turn requests away early.
        wrong: what the profile says that steps take, of what they take.
    """

    kind: str
    prefills: int = 0
    reject: bool = False
    wrong: float = 1.0

    @property
    def label(self) -> str:
        """As in tables."""
        return self.kind if self.kind != "static" else f"{self.prefills}P"


@dataclass(frozen=True)
class Result:
    """What came of a load: NaN times where a request was turned away."""

    load: Load
    first: Floats
    last: Floats
    handed_over: int
    changes: int

    def good(self, objectives: Objectives) -> np.ndarray:
        """Which requests were served within the objectives."""
        ttft, tpot = self.times
        return (ttft <= objectives.ttft) & ((tpot <= objectives.tpot) | (self.load.output < 2))

    @property
    def times(self) -> tuple[Floats, Floats]:
        """TTFT and TPOT, ms; an answer of one token has a TPOT of 0."""
        tpot = (self.last - self.first) * 1e3 / np.maximum(self.load.output - 1, 1)
        return (self.first - self.load.at) * 1e3, tpot

    @property
    def rejected(self) -> np.ndarray:
        """Which requests were turned away."""
        return np.isnan(self.last)


class Placing(Adaptive):
    """The rule of a policy, with early rejection if it asks for it."""

    def __init__(self, books: Books, engines: Sequence[int], policy: Policy) -> None:
        super().__init__(books, engines)
        self._policy = policy
        self._decodes = engines[policy.prefills :] if policy.kind == "static" else engines

    def place(self, view: View, prompt: int, now: float) -> Placement:
        policy, costs, engines = self._policy, self._books.costs, self._engines
        if policy.kind == "plain":
            return place(costs, view, Mode.PLAIN, engines, prompt)
        if policy.kind == "local_first":
            return place_local_first(costs, view, engines, prompt)
        if policy.kind == "static":
            soonest = min(engines[: policy.prefills], key=lambda e: ttft_ms(costs, view.of(e), prompt))
            return Placement(soonest, local=False, why=Why.HANDED_OVER)
        return super().place(view, prompt, now)

    def decode(self, view: View, prompt: int) -> int:
        if self._policy.kind == "adaptive":
            return super().decode(view, prompt)
        return decode_with_least(self._books.costs, view, self._decodes, prompt)

    def refuses(self, books: Books, view: View, prompt: int, placed: Placement) -> bool:
        if not self._policy.reject:
            return False
        changes = self._policy.kind == "adaptive"
        waits = placed.why is Why.WAITS
        way = Way(placed.engine, self._decodes, local=placed.local, roles_change=changes, waits=waits)
        found = predict(books.costs, view, prompt, way)
        if not found.alone:
            books.predicted(late=found.late, passing=found.passing)
        return found.refused


def believed(wrong: float) -> Costs:
    """What the proxy believes that steps cost: `wrong` times as much as they do, and its margin."""
    return replace(read_costs(PROFILE, Connector.P2P, margin=wrong * MARGIN, budget=8192), margin=MARGIN)


def simulate(count: int, load: Load, objectives: Objectives, policy: Policy) -> Result:
    """Serve a load with so many engines."""
    books = Books(believed(policy.wrong), objectives)
    rule = Placing(books, range(count), policy)
    found = serve(H200, Engines(0, count, Connector.P2P, KV_TOKENS), load, books, rule)
    return Result(load, found.outcome.first, found.outcome.last, found.handed_over, rule.changes)


__all__ = ["Policy", "Result", "believed", "replace", "simulate"]
