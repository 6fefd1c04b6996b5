"""A deployment whose requests are routed as they come: the engines of `online`, and a rule that sees what a proxy would know at that time.

No rule is written here: `Books` and the decisions are the proxy's own (`pd_routing`). They are told of prefill's answers, first tokens and ends of
answers when a proxy would hear of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Final, Protocol

import msgspec
import numpy as np

from pd_contracts.names import Connector, Role
from pd_planner.des.deployment import Outcome, launching_of, limits_of, step_costs
from pd_planner.des.online import OnlineEngine
from pd_planner.traffic.load import Load
from pd_routing.adaptive import ModeSwitch, Placement, decode_on, place
from pd_routing.books import Books, Ticket
from pd_routing.costs import Costs, costs_of
from pd_routing.view import Objectives, View
from pd_simulator.profile import Profile
from pd_simulator.steps.engines import Engines, Order

CONNECTOR: Final = Connector.P2P  # the only one that lets decode be chosen late
_END: Final = 1e12  # later than anything, s


class Rule(Protocol):
    """Who serves a request. Times are in milliseconds."""

    def place(self, view: View, prompt: int, now: float) -> Placement:
        """Where a prompt is computed, and whether its answer is written there too."""

    def decode(self, view: View, prompt: int) -> int:
        """Which engine writes the answer to a prompt that was computed for another one."""

    def refuses(self, books: Books, view: View, prompt: int, placed: Placement) -> bool:
        """Whether the request is turned away."""


class Adaptive:
    """ROUTING=adaptive; nothing is turned away."""

    def __init__(self, books: Books, engines: Sequence[int]) -> None:
        self.changes = 0
        self._books = books
        self._engines = engines
        self._switch = ModeSwitch()

    def place(self, view: View, prompt: int, now: float) -> Placement:
        before = self._switch.mode
        mode = self._switch.look(self._books.costs, view, len(self._engines), now)
        self.changes += mode is not before
        return place(self._books.costs, view, mode, self._engines, prompt)

    def decode(self, view: View, prompt: int) -> int:
        return decode_on(self._books.costs, view, self._engines, prompt)

    def refuses(self, books: Books, view: View, prompt: int, placed: Placement) -> bool:  # noqa: ARG002 - as `Rule` has it
        return False


@dataclass(frozen=True)
class Routed:
    """What came of a load; requests that were turned away have NaN times. `handed_over`: answers written by another engine than computed the prompt."""

    outcome: Outcome
    handed_over: int


def believed(profile: Profile, budget: int) -> Costs:
    """What a proxy with this STEP_PROFILE believes that steps cost, at the default STEP_MARGIN."""
    return costs_of(msgspec.to_builtins(profile), CONNECTOR, budget=budget)


def adaptive(
    profile: Profile,
    engines: Engines,
    load: Load,
    objectives: Objectives,
    *,
    known: Profile | None = None,
    processors: int = 0,
) -> Routed:
    """Serve a load with ROUTING=adaptive. `known` is what the proxy's STEP_PROFILE holds; `processors` as for `simulate`."""
    books = Books(believed(known or profile, engines.max_num_batched_tokens), objectives)
    return serve(profile, engines, load, books, Adaptive(books, range(engines.others)), processors=processors)


def serve(profile: Profile, engines: Engines, load: Load, books: Books, rule: Rule, *, processors: int = 0) -> Routed:
    """Serve a load with engines that can all do both; `order` of the engines says who writes the first token of an answer that moves."""
    books.know(dict.fromkeys(range(engines.others), engines.kv_tokens))
    return _World(profile, engines, load, (books, rule), processors).run()


class _World:
    """Engines, the books, and a clock that jumps from event to event."""

    def __init__(
        self, profile: Profile, engines: Engines, load: Load, proxy: tuple[Books, Rule], processors: int
    ) -> None:
        costs, limits, count = step_costs(profile, Role.COMBINED), limits_of(profile, engines), engines.others
        launchings = [launching_of(profile.launch, processors * count + number) for number in range(count)]
        self._engines = [OnlineEngine(costs, limits, launching, 2 * len(load) + 1) for launching in launchings]
        self._prompts = [0] * count  # computed there for others
        self._load = load
        self._prompt, self._output = load.prompt.tolist(), load.output.tolist()
        self._books, self._rule = proxy
        self._hands_off = engines.order is Order.HAND_OFF
        self._written: list[
            tuple[float, int, int, bool]
        ] = []  # a heap: when, request, engine, whether it was the last token
        self._tickets: list[Ticket | None] = [None] * len(load)
        self._local = [True] * len(load)
        self._first = np.full(len(load), np.nan)
        self._last = np.full(len(load), np.nan)
        self._answered = np.full(len(load), np.nan)
        self._api_s = profile.api_ms / 1e3
        self._handoff = profile.handoff_of(CONNECTOR)
        self._handed_over = 0

    def run(self) -> Routed:
        arrivals, number, written = [*self._load.at.tolist(), inf], 0, self._written
        while (until := self._bound(arrivals[number])) < inf:
            self._advance(until)
            while True:
                told = written[0][0] if written else inf
                if min(arrivals[number], told) > until:
                    break
                if arrivals[number] <= told:
                    self._arrives(arrivals[number], number)
                    number += 1
                else:
                    self._hears(*heappop(written))
        busy = np.array([engine.busy for engine in self._engines])
        preempted = np.zeros(len(self._load), np.int64)
        for engine in self._engines:
            np.add.at(preempted, *engine.preempted)
        return Routed(Outcome(self._load, self._first, self._last, self._answered, busy, preempted), self._handed_over)

    def _bound(self, arrival: float) -> float:
        """Up to when engines may run on their own: what one computes for another reaches that one an API later."""
        coming = min(arrival, self._written[0][0]) if self._written else arrival
        computing = (e.next_start for e, prompts in zip(self._engines, self._prompts, strict=True) if prompts)
        busy = min(computing, default=inf) + self._api_s
        if coming == busy == inf and any(engine.next_start < inf for engine in self._engines):
            return _END
        return min(coming, busy)

    def _advance(self, until: float) -> None:
        for number, engine in enumerate(self._engines):
            if engine.next_start < until:
                for one in engine.run(until):
                    heappush(self._written, (one.at, one.request, number, one.last))

    def _arrives(self, at: float, number: int) -> None:
        prompt, books, now = self._prompt[number], self._books, 1e3 * at
        books.arrived(now, prompt)
        view = books.view(now)
        placed = self._rule.place(view, prompt, now)
        if self._rule.refuses(books, view, prompt, placed):
            return
        self._tickets[number] = books.sent(now, placed.engine, prompt, answers=placed.local)
        self._local[number] = placed.local
        self._prompts[placed.engine] += not placed.local
        output = self._output[number] if placed.local else 1
        self._engines[placed.engine].add(number, at + self._api_s, prompt, output)

    def _hears(self, at: float, number: int, engine: int, last: bool) -> None:
        """The proxy has a first token, the last one, or prefill's answer, which is one token."""
        ticket, now = self._tickets[number], 1e3 * at
        if ticket is None:
            return
        if not self._local[number]:
            if last:
                self._computed(at, number, engine, ticket)
        elif last:
            self._ended(at, number, ticket)
        else:
            self._first[number] = at if np.isnan(self._first[number]) else self._first[number]
            self._books.computed(now, ticket)

    def _computed(self, at: float, number: int, engine: int, ticket: Ticket) -> None:
        """Choose the engine that writes the answer, or what follows prefill's token."""
        books, now, prompt, output = self._books, 1e3 * at, self._prompt[number], self._output[number]
        self._answered[number] = at
        self._prompts[engine] -= 1
        books.computed(now, ticket)
        if self._hands_off:
            self._first[number] = at + self._handoff.first_token_ms / 1e3
            if output == 1:
                self._ended(float(self._first[number]), number, ticket)
                return
            prompt, output = prompt + 1, output - 1
        decode = self._rule.decode(books.view(now), self._prompt[number])
        books.handed_over(now, ticket, decode)
        ready = at + self._api_s
        if decode != engine:
            ready += (self._handoff.wait_ms + self._handoff.wait_per_token_ms * (prompt - 1)) / 1e3
            self._handed_over += 1
        self._local[number] = True
        self._engines[decode].add(number, ready, prompt, output, external=prompt - 1)

    def _ended(self, at: float, number: int, ticket: Ticket) -> None:
        tokens = self._output[number]
        # An answer is one stream: where prefill's engine goes on itself, its next token may be there before prefill's has reached the client.
        at = float(np.fmax(at, self._first[number]))
        self._last[number] = at
        tpot = 1e3 * (at - float(self._first[number])) / (tokens - 1) if tokens > 1 else None
        self._books.ended(1e3 * at, ticket, tokens, tpot)
