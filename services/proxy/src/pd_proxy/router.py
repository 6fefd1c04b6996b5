"""Applies `adaptive` and `reject` to one process's requests: chooses routes from settings and engines, and keeps the books."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from pd_contracts.names import Connector, Role
from pd_contracts.stats import EngineLoadStats, RoutingStats
from pd_proxy.engines.pairing import Late, Needs, Pair, Route, Solo, able_for, compatible
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import SloError
from pd_routing import adaptive
from pd_routing.adaptive import ModeSwitch, Placement, Why
from pd_routing.books import Books, Ticket
from pd_routing.costs import Costs
from pd_routing.names import Reject, Routing
from pd_routing.predict import span_ms, tpot_ms
from pd_routing.reject import Prediction, Way, predict
from pd_routing.view import View

# Only with this connector can decode be chosen after prefill has answered, and prefill write the first token.
LATE_DECODE: Final = Connector.P2P

Trusted = Callable[[Instance, Instance], bool]


@dataclass(slots=True, eq=False)
class Journey:
    """One request's entry in the books, for as long as it is at the engines of one route. Times are in seconds.

    After its end nothing is entered: an engine may report late that it has computed the prompt.
    """

    router: "Router"
    ticket: Ticket
    prediction: Prediction
    why: str
    over: bool = False

    def computed(self, now: float, decode: Instance | None = None) -> None:
        """The prompt is computed; the answer is decoded at `decode`, or at the same engine if None."""
        if self.over:
            return
        books = self.router.books
        books.computed(1e3 * now, self.ticket)
        if decode is not None:
            books.handed_over(1e3 * now, self.ticket, decode.incarnation)

    def ended(self, now: float, *, tokens: int = 0, seconds: float = 0.0) -> None:
        """The engines are done with the request at `now`. `tokens` is the length of a complete answer, `seconds` the time from its first to its last token."""
        if self.over:
            return
        self.over = True
        tpot = 1e3 * seconds / (tokens - 1) if tokens > 1 and seconds > 0 else None
        self.router.books.ended(1e3 * now, self.ticket, tokens, tpot)


class Router:
    """Routes requests by predictions, if REJECT or ROUTING needs them."""

    def __init__(self, books: Books, trusted: Trusted, *, routing: Routing, reject: Reject) -> None:
        """`trusted` tells which pairs of engines may hand over KV."""
        self.books = books
        self.rejected = 0
        self._trusted = trusted
        self._routing = routing
        self._reject = reject
        self._switch = ModeSwitch()
        self._known: tuple[Instance, ...] = ()

    @property
    def costs(self) -> Costs:
        return self.books.costs

    def arrived(self, now: float, prompt: int, instances: tuple[Instance, ...]) -> None:
        """A request has arrived at `now` (seconds), with `prompt` tokens."""
        if instances is not self._known:
            self._known = instances
            self.books.know({instance.incarnation: instance.kv_tokens or inf for instance in instances})
        self.books.arrived(1e3 * now, prompt)

    def place(self, instances: Sequence[Instance], needs: Needs, prompt: int, now: float) -> Solo | Late | None:
        """The route, if ROUTING chooses it and there are engines that can do both; else None."""
        if self._routing is Routing.STATIC:
            return None
        both = [i for i in able_for(instances, needs.model) if i.role is Role.COMBINED]
        if not both:
            return None
        by_number = {instance.incarnation: instance for instance in both}
        view = self.books.view(1e3 * now)
        placed = self._placed(view, list(by_number), prompt, 1e3 * now)
        engine = by_number[placed.engine]
        if placed.local or needs.combined_only is not None or needs.sequences > 1 or not self._partners(engine, both):
            return Solo(engine, Why.LOCAL if not placed.local else placed.why)
        return Late(engine, placed.why)

    def _placed(self, view: View, engines: Sequence[int], prompt: int, now_ms: float) -> Placement:
        if self._routing is Routing.LOCAL_FIRST:
            return adaptive.place_local_first(self.costs, view, engines, prompt)
        mode = self._switch.look(self.costs, view, len(engines), now_ms)
        return adaptive.place(self.costs, view, mode, engines, prompt)

    def decode_for(
        self, route: Late, instances: Sequence[Instance], model: str | None, prompt: int, now: float
    ) -> Instance:
        """The engine that decodes after a computed prompt; it can be the one that computed it."""
        both = [i for i in able_for(instances, model) if i.role is Role.COMBINED]
        candidates = {i.incarnation: i for i in (route.prefill, *self._partners(route.prefill, both))}
        view = self.books.view(1e3 * now)
        choose = adaptive.decode_with_least if self._routing is Routing.LOCAL_FIRST else adaptive.decode_on
        return candidates[choose(self.costs, view, list(candidates), prompt)]

    def consider(
        self, route: Route, instances: Sequence[Instance], needs: Needs, prompt: int, now: float, *, new: bool
    ) -> Prediction:
        """The prediction for a request; only a `new` one counts as traffic, and may be rejected.

        Raises:
            SloError: if the objectives would be missed, and REJECT=slo.
        """
        found = predict(self.costs, self.books.view(1e3 * now), prompt, self._way(route, instances, needs))
        if new and not found.alone:
            self.books.predicted(late=found.late, passing=found.passing)
        if found.refused and new and self._reject is Reject.SLO:
            self.rejected += 1
            raise SloError(f"rejected early: {found.sentence}; try again later", retry_after_s=found.retry_after_s)
        return found

    def begin(
        self, route: Route, prompt: int, prediction: Prediction, now: float, *, sequences: int, streamed: bool
    ) -> Journey:
        """Enter a request that is sent to the engines of this route."""
        engine = route.engine if isinstance(route, Solo) else route.prefill
        solo = isinstance(route, Solo)
        ticket = self.books.sent(
            1e3 * now,
            engine.incarnation,
            prompt,
            answers=solo,
            sequences=sequences,
            watched=streamed or not solo,
        )
        return Journey(self, ticket, prediction, "" if isinstance(route, Pair) else route.why)

    def resume(self, journey: Journey, route: Route, prompt: int, now: float) -> Journey:
        """Enter a stream that these engines continue; `prompt` includes its tokens so far. What was predicted for the request stays."""
        following = self.begin(route, prompt, journey.prediction, now, sequences=1, streamed=True)
        following.why = journey.why
        return following

    def stats(self, instances: Sequence[Instance], now: float) -> RoutingStats:
        """For `/stats`."""
        view, costs = self.books.view(1e3 * now), self.costs
        span = span_ms(view.traffic, view.objectives.tpot)
        return RoutingStats(
            routing=self._routing,
            reject=self._reject,
            rejected=self.rejected,
            mode=self._switch.mode if self._routing is Routing.ADAPTIVE else "",
            plain_tpot_ms=_shown(adaptive.plain_tpot_ms(costs, view, max(1, len(instances)))),
            ttft_slo_ms=_shown(view.objectives.ttft),
            tpot_slo_ms=_shown(view.objectives.tpot),
            correction=round(view.correction, 4),
            pace=self.books.pace,
            requests_per_s=round(1e3 * view.traffic.rate, 3),
            answer_tokens=round(view.traffic.answer, 1),
            engines=[
                EngineLoadStats(
                    name=i.name,
                    sequences=view.of(i.incarnation).sequences,
                    context_tokens=round(view.of(i.incarnation).context),
                    queue_ms=round(view.of(i.incarnation).queue_ms, 1),
                    tpot_ms=_shown(tpot_ms(costs, view.of(i.incarnation), view.traffic, 0, span=span, local=False)),
                    room_tokens=_whole(view.of(i.incarnation).room),
                )
                for i in instances
            ],
        )

    def _partners(self, prefill: Instance, both: Sequence[Instance]) -> list[Instance]:
        if prefill.connector is not LATE_DECODE:
            return []
        return [i for i in both if i is not prefill and compatible(prefill, i) and self._trusted(prefill, i)]

    def _way(self, route: Route, instances: Sequence[Instance], needs: Needs) -> Way:
        able = able_for(instances, needs.model)
        hands_off = needs.hands_off and not isinstance(route, Solo) and route.prefill.connector is LATE_DECODE
        if isinstance(route, Pair):
            decodes = [i.incarnation for i in able if i.role is Role.DECODE and compatible(route.prefill, i)]
            return Way(
                route.prefill.incarnation, decodes or [route.decode.incarnation], local=False, hands_off=hands_off
            )
        both = [i for i in able if i.role is Role.COMBINED]
        if isinstance(route, Late):
            partners = [i.incarnation for i in self._partners(route.prefill, both)]
            return Way(
                route.prefill.incarnation,
                [route.prefill.incarnation, *partners],
                local=False,
                hands_off=hands_off,
                roles_change=self._routing is Routing.ADAPTIVE,
                waits=route.why == Why.WAITS,
            )
        engine = route.engine
        return Way(
            engine.incarnation,
            [i.incarnation for i in both] or [engine.incarnation],
            local=True,
            roles_change=self._routing is Routing.ADAPTIVE and engine.connector is LATE_DECODE and len(both) > 1,
        )


def _shown(milliseconds: float) -> float | None:
    """A number for JSON, which has no infinity: None."""
    return round(milliseconds, 2) if milliseconds < 1e9 else None


def _whole(tokens: float) -> int | None:
    """A whole number for JSON; None for infinity."""
    return round(tokens) if tokens < inf else None
