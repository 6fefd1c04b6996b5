"""A deployment in virtual time: the planner's engines, and the proxy's own decisions about every request.

Nothing of the rule is written here a second time: `Books`, `adaptive` and `reject` are called as the proxy calls them, with the times
at which a proxy would hear of prefill's answers and of the ends of streams.
"""

# ruff: noqa: INP001  a part of a script

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np

from pd_contracts.names import Connector, Role
from pd_planner.des.deployment import launching_of, limits_of, step_costs
from pd_planner.des.online import OnlineEngine
from pd_planner.traffic.load import Floats, Load
from pd_routing.adaptive import (
    Mode,
    ModeSwitch,
    Placement,
    Why,
    decode_on,
    decode_with_least,
    place,
    place_local_first,
)
from pd_routing.books import Books, Ticket
from pd_routing.costs import Costs, read_costs
from pd_routing.predict import ttft_ms
from pd_routing.reject import Way, predict
from pd_routing.view import Objectives, View
from pd_simulator.profile import load_profile
from pd_simulator.steps.engines import Engines

PROFILE: Final = "h200-llama3-8b"
KV_TOKENS: Final = 400_000
MARGIN: Final = 1.1
H200: Final = load_profile(PROFILE)


@dataclass(frozen=True)
class Policy:
    """How requests are placed.

    Attributes:
        kind: plain, static, local_first or adaptive.
        prefills: with static, how many of the engines only compute prompts.
        reject: turn requests away early.
        margin: what steps are believed to take, of what they take.
    """

    kind: str
    prefills: int = 0
    reject: bool = False
    margin: float = MARGIN

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
        ttft = (self.first - self.load.at) * 1e3
        tpot = (self.last - self.first) * 1e3 / np.maximum(self.load.output - 1, 1)
        return (ttft <= objectives.ttft) & ((tpot <= objectives.tpot) | (self.load.output < 2))

    @property
    def rejected(self) -> np.ndarray:
        """Which requests were turned away."""
        return np.isnan(self.last)


ARRIVES, WRITTEN = range(2)


class World:
    """Engines, the books, and a clock that jumps from event to event."""

    def __init__(self, count: int, load: Load, objectives: Objectives, policy: Policy) -> None:
        kind = Engines(0, count, None, KV_TOKENS)
        costs = step_costs(H200, Role.COMBINED)
        limits = limits_of(H200, kind)
        self._engines = [
            OnlineEngine(costs, limits, launching_of(H200.launch, number), 2 * len(load) + 1) for number in range(count)
        ]
        self._numbers = list(range(count))
        self._prompts = [0] * count  # computed there for others
        self._load = load
        self._policy = policy
        self._costs = believed(policy.margin)
        self._books = Books(self._costs, objectives)
        self._books.know(dict.fromkeys(range(count), KV_TOKENS))
        self._switch = ModeSwitch()
        self._events: list[tuple[float, int, int, int, bool]] = []
        self._tickets: list[Ticket | None] = [None] * len(load)
        self._at: list[int] = [0] * len(load)
        self._local: list[bool] = [True] * len(load)
        self._first = np.full(len(load), np.nan)
        self._last = np.full(len(load), np.nan)
        self._api_s = H200.api_ms / 1e3
        self._wait = H200.handoff_of(Connector.P2P)
        self._handed_over = 0
        self._changes = 0

    def run(self) -> Result:
        coming = [(float(at), ARRIVES, number, 0, False) for number, at in enumerate(self._load.at)]
        self._events = coming
        heapq.heapify(self._events)
        while (until := self._bound()) < inf:
            self._advance(until)
            while self._events and self._events[0][0] <= until:
                at, kind, number, engine, last = heapq.heappop(self._events)
                if kind == ARRIVES:
                    self._arrives(at, number)
                else:
                    self._written(at, number, engine, last=last)
        return Result(self._load, self._first, self._last, self._handed_over, self._changes)

    def _bound(self) -> float:
        """Up to when engines may run on their own: what one computes for another reaches that one an API later."""
        computing = (e.next_start for e, prompts in zip(self._engines, self._prompts, strict=True) if prompts)
        coming = self._events[0][0] if self._events else inf
        busy = min(computing, default=inf) + self._api_s
        if coming == busy == inf and any(engine.next_start < inf for engine in self._engines):
            return 1e12
        return min(coming, busy)

    def _advance(self, until: float) -> None:
        for number, engine in enumerate(self._engines):
            for one in engine.run(until):
                heapq.heappush(self._events, (one.at, WRITTEN, one.request, number, one.last))

    def _arrives(self, at: float, number: int) -> None:
        prompt, output, books, now = (
            int(self._load.prompt[number]),
            int(self._load.output[number]),
            self._books,
            1e3 * at,
        )
        books.arrived(now, prompt)
        view = books.view(now)
        placed = self._place(view, prompt, now)
        if self._policy.reject:
            found = predict(self._costs, view, prompt, self._way(placed))
            books.predicted(late=found.late)
            if found.refused:
                return
        self._tickets[number] = books.sent(now, placed.engine, prompt, answers=placed.local)
        self._local[number], self._at[number] = placed.local, placed.engine
        self._prompts[placed.engine] += not placed.local
        self._engines[placed.engine].add(number, at + self._api_s, prompt, output if placed.local else 1)

    def _place(self, view: View, prompt: int, now: float) -> Placement:
        policy, costs = self._policy, self._costs
        if policy.kind == "plain":
            return place(costs, view, Mode.PLAIN, self._numbers, prompt)
        if policy.kind == "local_first":
            return place_local_first(costs, view, self._numbers, prompt)
        if policy.kind == "static":
            soonest = min(self._numbers[: policy.prefills], key=lambda e: ttft_ms(costs, view.of(e), prompt))
            return Placement(soonest, local=False, why=Why.HANDED_OVER)
        before = self._switch.mode
        mode = self._switch.look(costs, view, len(self._numbers), now)
        self._changes += mode is not before
        return place(costs, view, mode, self._numbers, prompt)

    def _decodes(self) -> Sequence[int]:
        return self._numbers[self._policy.prefills :] if self._policy.kind == "static" else self._numbers

    def _way(self, placed: Placement) -> Way:
        return Way(placed.engine, self._decodes(), local=placed.local)

    def _written(self, at: float, number: int, engine: int, *, last: bool) -> None:
        ticket, books, now = self._tickets[number], self._books, 1e3 * at
        if ticket is None:
            return  # it was turned away
        if not self._local[number]:
            if last:  # prefill's only token: one answer, once
                self._hand_over(at, number, engine)
            return
        if not last:
            self._first[number] = at
            books.computed(now, ticket)
            return
        self._last[number] = at
        tokens = int(self._load.output[number])
        tpot = 1e3 * (at - self._first[number]) / (tokens - 1) if tokens > 1 else None
        books.ended(ticket, tokens, tpot)

    def _hand_over(self, at: float, number: int, engine: int) -> None:
        ticket, books, now = self._tickets[number], self._books, 1e3 * at
        if ticket is None:
            return  # it was turned away
        prompt, output = int(self._load.prompt[number]), int(self._load.output[number])
        books.computed(now, ticket)
        choose = decode_on if self._policy.kind == "adaptive" else decode_with_least
        decode = choose(self._costs, books.view(now), self._decodes(), prompt)
        books.handed_over(now, ticket, decode)
        ready = at + self._api_s
        if decode != engine:
            ready += (self._wait.wait_ms + self._wait.wait_per_token_ms * (prompt - 1)) / 1e3
            self._handed_over += 1
        self._local[number] = True
        self._prompts[engine] -= 1
        self._engines[decode].add(number, ready, prompt, output, external=prompt - 1)


def believed(margin: float) -> Costs:
    """What the proxy believes that steps cost."""
    return read_costs(PROFILE, Connector.P2P, margin=margin, budget=8192)


def simulate(count: int, load: Load, objectives: Objectives, policy: Policy) -> Result:
    """Serve a load with so many engines."""
    return World(count, load, objectives, policy).run()


__all__ = ["Policy", "Result", "World", "believed", "replace", "simulate"]
