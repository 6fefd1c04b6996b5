"""One attempt at a client's request: with a pair of engines, or with one engine that does both.

Decode's request is opened in the task that ran prefill, so a client that leaves cannot cancel it half-way. It is aborted (its
connection closed) only after its first byte or a grace time. By then the engine knows the request and frees its KV. If it were closed
earlier, the HTTP server might drop it and leave the KV.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from time import monotonic
from typing import Any

from pd_contracts.names import Connector
from pd_proxy.context import Context
from pd_proxy.engines.pairing import Late, Pair, Route, Solo, draw_alike
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import NotAskedError
from pd_proxy.kv.budget import Claim
from pd_proxy.kv.keyed import Keyed, takes_chat_ids
from pd_proxy.kv.transfer import HandOver, Leg, plain, plan, plan_late
from pd_proxy.protocol import rewrite
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import NO_IDS, OFF, limit_of, may_hand_off, seeded
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.rewrite import Cleaning
from pd_proxy.protocol.usage import said, tokens_of
from pd_proxy.request.ask import ask, ask_for_stream
from pd_proxy.request.exchange import ENDS, Exchange
from pd_proxy.request.keyed import Choose, KeyedAttempt
from pd_proxy.request.part import WHOLE, Part
from pd_proxy.request.trace import Trace
from pd_proxy.settings import When, Writer
from pd_proxy.upstream.answers import Answer, Stream, Whole


class Attempt:
    """A request on one route, under its own id; a retry is another attempt.

    Attributes:
        route: the engines that serve it; a `Late` one becomes a `Pair` when decode is chosen.
    """

    def __init__(
        self,
        context: Context,
        generation: Generation,
        headers: Mapping[str, str],
        trace: Trace,
        claim: Claim,
        *,
        part: Part = WHOLE,
    ) -> None:
        """`claim` is room for its KV at decode, released when the KV has arrived."""
        self._context = context
        self._wanted = generation
        self._generation = part.asking(generation)
        self._headers = headers
        self._trace = trace
        self._claim = claim
        self._part = part
        self.route: Route | None = None

    async def answer(self, route: Route) -> Answer:
        """Have the engines of this route serve it.

        Raises:
            ProxyError: if it fails before the client could be sent a byte.
        """
        self._trace.dispatched = monotonic()
        self.route = route
        if isinstance(route, Solo):
            answer = await self._by_one(route.engine)
            self._trace.computed()
        else:
            answer = await (self._by_late(route) if isinstance(route, Late) else self._by_pair(route))
        if isinstance(answer, Whole) and self._trace.journey is not None:
            self._trace.tokens = tokens_of(answer.body)
        return answer

    # Methods that would only await another coroutine return it: each one that waits takes memory, and a step whenever the request goes on.
    def _by_one(self, engine: Instance) -> Coroutine[Any, Any, Answer]:
        self._trace.uuid, leg = plain(self._generation.endpoint, self._generation.fields, self._headers)
        self._trace.decode = engine.name
        return self._open(engine, leg, self._trace.uuid, Cleaning(self._generation.endpoint))

    def _by_pair(self, pair: Pair) -> Coroutine[Any, Any, Answer]:
        if pair.decode.connector is Connector.P2P and not self._part.begun.tokens:
            reason = self._kept_back(pair)
            self._trace.kept_back = reason or ""
            if reason is None and limit_of(self._wanted) == 1:
                return self._at_prefill(pair.prefill)
            at_once = self._context.settings.decode_asked is When.AT_ONCE and self._generation.sequences == 1
            if reason is None or at_once:
                return self._keyed(pair, hand_off=reason is None)
        return self._in_order(pair)

    def _kept_back(self, pair: Pair) -> str | None:
        """Why decode writes the first token; None if prefill does."""
        if self._context.settings.first_token is Writer.DECODE:
            return OFF
        if self._generation.endpoint is Endpoint.CHAT and not takes_chat_ids(pair.decode):
            return NO_IDS
        told = pair.decode.told
        return may_hand_off(
            self._wanted,
            by_position=draw_alike(pair.prefill, pair.decode),
            own_fields=told.own_fields,
            own_limit=told.own_limit,
        )

    def _at_prefill(self, prefill: Instance) -> Coroutine[Any, Any, Answer]:
        """Have prefill write an answer of one token: it needs no decode, and no KV moves."""
        self._trace.handed_off = True
        self._claim.release()
        return self._by_one(prefill)

    async def _keyed(self, pair: Pair, *, hand_off: bool, choose: Choose | None = None) -> Answer:
        trace, keyed = self._trace, Keyed.new(pair, self._generation, self._headers, late=choose is not None)
        trace.uuid, trace.prefill, trace.decode = keyed.uuid, pair.prefill.name, "" if choose else pair.decode.name
        trace.handed_off = hand_off
        attempt = KeyedAttempt(self._context, keyed, self._wanted, trace, self._part, choose=choose)
        try:
            return await (attempt.hand_off() if hand_off else attempt.decode_first())
        finally:
            self._claim.release()

    def _in_order(self, pair: Pair) -> Coroutine[Any, Any, Answer]:
        """Ask decode after prefill has answered, which works with every connector."""
        planned = plan(pair, self._generation.endpoint, self._generation.fields, self._headers)
        self._claim.covers(pair, planned)
        return self._exchanged(Exchange(self._context, pair, planned, claim=self._claim))

    def _by_late(self, route: Late) -> Coroutine[Any, Any, Answer]:
        """Prefill keeps the KV until decode asks for it. Decode is chosen when prefill has answered, by the load at that time."""
        engine = route.prefill
        if not self._part.begun.tokens:
            reason = self._kept_back(Pair(engine, engine))
            self._trace.kept_back = reason or ""
            if reason is None and limit_of(self._wanted) == 1:
                return self._at_prefill(engine)
            if reason is None:
                return self._keyed(Pair(engine, engine), hand_off=True, choose=partial(self._chosen, route))
        planned = plan_late(engine, self._generation.endpoint, self._generation.fields, self._headers)
        # Decode is not known yet; while prefill runs, no other engine gets the request.
        return self._exchanged(Exchange(self._context, Pair(engine, engine), planned, claim=self._claim), route)

    def _chosen(self, route: Late) -> Pair:
        context, wanted, decode = self._context, self._wanted, route.prefill
        if context.router is not None:
            handed_off = self._trace.handed_off and seeded(wanted)
            still = context.standstill.now()
            view = [
                instance
                for instance in context.registry.view()
                if self._part.able(instance)
                and instance.incarnation not in still
                and (draw_alike(route.prefill, instance) or not handed_off)
            ]
            decode = context.router.decode_for(route, view, wanted.model, wanted.tokens, monotonic())
        self.route = Pair(route.prefill, decode)
        return self.route

    def _exchanged(self, exchange: Exchange, late: Late | None = None) -> Coroutine[Any, Any, Answer]:
        trace, pair = self._trace, exchange.pair
        trace.uuid, trace.prefill, trace.decode = (
            exchange.plan.uuid,
            pair.prefill.name,
            "" if late else pair.decode.name,
        )
        return exchange.through(partial(self._decode, exchange, late), self._let_go)

    async def _decode(self, exchange: Exchange, late: Late | None, handover: HandOver) -> Answer:
        trace = self._trace
        # No await between here and decode's request: the client still waits.
        trace.prefilled = monotonic()
        if late is not None:
            exchange.pair = self._chosen(late)
            trace.decode = exchange.pair.decode.name
        trace.computed(exchange.pair.decode)
        try:
            engine = exchange.receiver()
            if engine.state is State.SUSPECT:
                raise NotAskedError(f"{engine.name} has stalled")  # another request would not help
            endpoint = self._generation.endpoint
            cleaning = Cleaning(endpoint, exchange.plan.secret, said(endpoint, exchange.usage))
            return await self._open(engine, handover.decode(), exchange.plan.engine_id, cleaning)
        except ENDS as error:
            exchange.owe(handover, error)
            raise

    def _let_go(self, opening: "asyncio.Task[Answer]", handover: HandOver) -> None:
        """The client has left after decode was asked."""
        grace_s = self._context.settings.abort_grace_s if handover.pushed else 0
        self._context.tasks.spawn(_end(opening, grace_s))

    async def _open(self, engine: Instance, leg: Leg, engine_id: str, cleaning: Cleaning) -> Answer:
        if self._generation.stream:
            flight, rewriter = self._context.flights.open(engine), self._part.rewriter(engine, engine_id, cleaning)
            stream = await ask_for_stream(self._context, cleaning.endpoint, leg, rewriter, flight)
            stream.successor = self._part.successor(rewriter)
            return stream
        body = await ask(self._context, engine, cleaning.endpoint, leg, whole=True)
        return Whole(rewrite.reply(body, cleaning, engine.name, (engine.http_address, engine.zmq_address)))


async def _end(opening: "asyncio.Task[Answer]", grace_s: float) -> None:
    """End a decode request whose client has left, after its first byte or the grace time."""
    await asyncio.wait({opening}, timeout=grace_s)
    if not opening.done():
        opening.cancel()
    elif not opening.cancelled() and opening.exception() is None:
        answer = opening.result()
        if isinstance(answer, Stream):
            answer.close()
