"""Chooses the next engines for a request: by its failed attempts, the policy, and the room for its KV."""

import asyncio
from collections.abc import Callable, Sequence, Set
from time import monotonic
from typing import TypeAlias

from msgspec import Struct, field

from pd_proxy.context import Context
from pd_proxy.engines.pairing import Needs, Pair, Route, Solo, choose
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import (
    NoInstanceError,
    PrefillTimeoutError,
    ProxyError,
    QueuedTooLongError,
    StaleConnectionError,
)
from pd_proxy.kv.budget import Claim
from pd_proxy.protocol.generation import Generation
from pd_routing.reject import Prediction

Able: TypeAlias = Callable[[Instance], bool]


def anybody(_: Instance) -> bool:
    """Every engine."""
    return True


class Failures(Struct):
    """A request's failed attempts; engines are given as incarnations.

    Attributes:
        failed: engines that do not get the request again.
        doubted: engines that get it only if there is no other.
        route: its present route; `prediction`: the TTFT and TPOT that were predicted for it there.
    """

    failed: set[int] = field(default_factory=set)
    doubted: set[int] = field(default_factory=set)
    last: ProxyError | None = None
    route: Route | None = None
    prediction: Prediction | None = None

    def add(self, error: ProxyError, route: Route, *, prefilled: bool) -> None:
        """Another attempt failed, before or after prefill answered."""
        self.last = error
        at_fault = self.doubted if isinstance(error, StaleConnectionError) else self.failed
        if isinstance(route, Solo):
            at_fault.add(route.engine.incarnation)
        elif prefilled and isinstance(route, Pair):
            at_fault.add(route.decode.incarnation)
        else:
            at_fault.add(route.prefill.incarnation)
            if isinstance(error, PrefillTimeoutError) and isinstance(route, Pair):
                # A decode that accepts no KV stalls its prefill; the next prefill must not be paired with it.
                self.doubted.add(route.decode.incarnation)

    @property
    def none(self) -> bool:
        """Whether nothing has failed yet."""
        return self.last is None and not self.failed and not self.doubted

    def allows(self, engine: Instance) -> bool:
        """Whether an engine may get the request: it has not failed it."""
        return engine.incarnation not in self.failed

    def candidates(self, instances: Sequence[Instance], still: Set[int] = frozenset()) -> list[list[Instance]]:
        """The engines that may still serve the request, in groups, the best first. At those in `still` nothing moves."""
        able = [i for i in instances if self.allows(i)]
        worse = self.doubted | still
        return [[i for i in able if i.incarnation not in worse], able]


async def admitted(
    context: Context, generation: Generation, needs: Needs, failures: Failures, able: Able = anybody
) -> tuple[Route, Claim]:
    """A route among suitable engines, and room for the request's KV at its decode. Waits for room up to QUEUE_TIMEOUT_S, first come, first served.

    Raises:
        QueuedTooLongError: if there was no room in time.
        SloError: if it would miss its objectives, and REJECT=slo.
        ProxyError: if no engine can serve it, or none can any more.
    """
    size = context.budget.size(generation)
    if not context.budget.limit:
        route = _predicted(context, generation, needs, failures, able)
        return route, context.budget.claim(route, size)
    try:
        async with asyncio.timeout(context.settings.queue_timeout_s), context.budget.turn:
            while True:
                route = _predicted(context, generation, needs, failures, able, size=size)
                claim = context.budget.take(route, size)
                if claim is not None:
                    return route, claim
                await context.budget.released()
    except TimeoutError:
        raise failures.last or QueuedTooLongError(
            "no decode engine had room for the KV within QUEUE_TIMEOUT_S"
        ) from None


def _predicted(
    context: Context, generation: Generation, needs: Needs, failures: Failures, able: Able, *, size: int = 0
) -> Route:
    """The next route. Only a new request is rejected because of its predicted TTFT or TPOT."""
    router, view, prompt = context.router, context.registry.view(), generation.tokens
    if router is None:
        return _route(context, needs, failures, able, size)
    placed = (
        router.place([i for i in instances if able(i)], needs, prompt, monotonic())
        for instances in failures.candidates(view, context.standstill.now())
    )
    route = next((found for found in placed if found), None) or _route(context, needs, failures, able, size)
    # While a request waits for room, it is predicted again and again.
    new = failures.last is None and failures.route is None and failures.prediction is None
    failures.prediction = router.consider(route, view, needs, prompt, monotonic(), new=new)
    return route


def _route(context: Context, needs: Needs, failures: Failures, able: Able, size: int = 0) -> Route:
    """The next route; if possible, one whose decode has room."""
    turn, still = next(context.turns), context.standstill.now()
    if not context.budget.limit and failures.none and able is anybody and not still:
        return context.choices.of(context.registry.view(), needs).take(needs, turn, context.rules)
    error: ProxyError | None = None
    for candidates in failures.candidates([i for i in context.registry.view() if able(i)], still):
        roomy = [i for i in candidates if context.budget.fits(i, size)]
        for instances in (roomy, candidates):
            try:
                return choose(instances, needs, turn, context.rules)
            except ProxyError as refusal:
                error = refusal
    raise failures.last or error or NoInstanceError("no engine is ready")
