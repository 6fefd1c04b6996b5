"""A request until it is served: which failures deserve another attempt, with whom, and when to give up.

Every attempt has an id of its own and a prefill of its own, because KV is keyed by the id. An engine that failed a request
does not get that request again; a process that took its place may. `exchange` sees to the KV of the attempts that failed.
A request that kills engines stops after RETRIES more of them. Nothing is tried again once a client got a byte.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from pd_proxy.context import Context
from pd_proxy.engines.pairing import Needs, Pair, Route, choose, is_ready
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import (
    AnswerTooLargeError,
    NoInstanceError,
    PrefillTimeoutError,
    ProxyError,
    QueuedTooLongError,
    UpstreamError,
)
from pd_proxy.kv.budget import Claim
from pd_proxy.protocol.generation import Generation, approximate_tokens, prefix
from pd_proxy.request.attempt import Attempt
from pd_proxy.request.trace import Trace
from pd_proxy.upstream.answers import Answer

logger = logging.getLogger(__name__)

# What of a prompt decides its prefill with prefix affinity: a system prompt, but not the question after it.
PREFIX_BYTES: Final = 512
LOOK_S: Final = 0.05


@dataclass(slots=True)
class Failures:
    """What became of a request's earlier attempts; engines are incarnations.

    Attributes:
        failed: engines that do not get it again.
        doubted: engines that get it only if there is nobody else.
    """

    failed: set[int] = field(default_factory=set)
    doubted: set[int] = field(default_factory=set)
    last: ProxyError | None = None

    def add(self, error: ProxyError, route: Route, *, prefilled: bool) -> None:
        """One more attempt failed, before or after prefill had answered."""
        self.last = error
        if not isinstance(route, Pair):
            self.failed.add(route.engine.incarnation)
        elif prefilled:
            self.failed.add(route.decode.incarnation)
        else:
            self.failed.add(route.prefill.incarnation)
            if isinstance(error, PrefillTimeoutError):
                # A decode that takes no KV makes its prefill stand still; the next one should not follow it.
                self.doubted.add(route.decode.incarnation)

    def candidates(self, instances: Sequence[Instance]) -> list[list[Instance]]:
        """Who may still serve the request, the better choice first."""
        able = [i for i in instances if i.incarnation not in self.failed]
        return [[i for i in able if i.incarnation not in self.doubted], able]


def worth_another(error: ProxyError) -> bool:
    """Whether another engine might do better: not if the request itself was refused."""
    if not isinstance(error, UpstreamError) or isinstance(error, AnswerTooLargeError):
        return False
    return error.status >= 500 or error.status in (408, 429)


async def serve(context: Context, generation: Generation, headers: Mapping[str, str], trace: Trace) -> Answer:
    """Attempt a request until it succeeds or its budget is spent.

    Raises:
        ProxyError: what the last attempt failed with.
    """
    needs = Needs(
        model=generation.model,
        sequences=generation.sequences,
        combined_only=generation.combined_only,
        short=approximate_tokens(generation) < context.settings.disagg_min_tokens,
        prefix=prefix(generation, PREFIX_BYTES),
    )
    failures = Failures()
    await _engines_known(context)
    await _model_known(context, generation.model)
    while True:
        route, claim = await _admitted(context, generation, needs, failures)
        _begin(context, trace, failures.last)
        try:
            return await Attempt(context, generation, headers, trace, claim).answer(route)
        except ProxyError as error:
            if not worth_another(error) or _spent(context, trace):
                raise
            failures.add(error, route, prefilled=trace.prefilled is not None)


async def _engines_known(context: Context) -> None:
    """A proxy that has just started knows no engine before it pings; who asks meanwhile waits, but not longer than pings take."""
    end = context.started + context.settings.ping_ttl_s
    while monotonic() < end and not context.stopping and not is_ready(context.registry.view(), context.trust):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


async def _model_known(context: Context, model: str | None) -> None:
    """An adapter may have been loaded since the engines were asked what they serve."""
    if model is not None and not any(model in instance.models for instance in context.registry.view()):
        await context.look_again()


def _spent(context: Context, trace: Trace) -> bool:
    settings = context.settings
    late = monotonic() - trace.arrived > settings.retry_budget_s
    return late or trace.retries >= settings.retries or context.stopping


def _begin(context: Context, trace: Trace, failure: ProxyError | None) -> None:
    trace.prefilled, trace.prefill = None, ""
    if failure is not None:
        trace.retries += 1
        context.metrics.retried(failure.cause)
        logger.warning("request is tried again", extra={"id": trace.uuid, "cause": failure.cause})


async def _admitted(context: Context, generation: Generation, needs: Needs, failures: Failures) -> tuple[Route, Claim]:
    """A route, and room for the request's KV at its decode; waits for room up to QUEUE_TIMEOUT_S, first come first served.

    Raises:
        QueuedTooLongError: if there was none.
        ProxyError: if nobody can serve it (any more).
    """
    size = context.budget.size(generation)
    if not context.budget.limit:
        route = _route(context, needs, failures)
        return route, context.budget.claim(route, size)
    try:
        async with asyncio.timeout(context.settings.queue_timeout_s), context.budget.turn:
            while True:
                route = _route(context, needs, failures, size)
                claim = context.budget.take(route, size)
                if claim is not None:
                    return route, claim
                await context.budget.released()
    except TimeoutError:
        raise failures.last or QueuedTooLongError(
            "no decode engine had room for the KV within QUEUE_TIMEOUT_S"
        ) from None


def _route(context: Context, needs: Needs, failures: Failures, size: int = 0) -> Route:
    """The next route; one whose decode has room, if there is any."""
    turn = next(context.turns)
    error: ProxyError | None = None
    for candidates in failures.candidates(context.registry.view()):
        roomy = [i for i in candidates if context.budget.fits(i, size)]
        for instances in (roomy, candidates):
            try:
                return choose(instances, needs, turn, context.rules)
            except ProxyError as refusal:
                error = refusal
    raise failures.last or error or NoInstanceError("no engine is ready")
