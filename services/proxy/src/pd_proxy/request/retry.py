"""Attempts at a request until it is served: after which failures to try again, at which engine, and when to give up.

Every attempt has its own id and its own prefill, because KV is keyed by the id. An engine that failed a request does not get
that request again, but a process that took its place may, and so may an engine that only closed an idle connection. `exchange` takes care
of the KV of failed attempts. A request that kills engines ends after RETRIES more of them. Nothing is tried again once the client has got a byte.
"""

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic
from typing import Final

from pd_proxy.context import Context
from pd_proxy.engines.pairing import Needs, is_ready
from pd_proxy.engines.policy import Policy
from pd_proxy.errors import AnswerTooLargeError, ProxyError, UpstreamError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import Generation, prefix
from pd_proxy.request.attempt import Attempt
from pd_proxy.request.migration import Migration, may_continue
from pd_proxy.request.route import Failures, admitted
from pd_proxy.request.trace import Trace
from pd_proxy.settings import Writer
from pd_proxy.upstream.answers import Answer

logger = logging.getLogger(__name__)

# How many bytes of a prompt choose its prefill with prefix affinity: enough for a system prompt, but not for the question after it.
PREFIX_BYTES: Final = 512
LOOK_S: Final = 0.05


def worth_another(error: ProxyError) -> bool:
    """Whether another engine might succeed: not if the request itself was refused."""
    if not isinstance(error, UpstreamError) or isinstance(error, AnswerTooLargeError):
        return False
    return error.status >= 500 or error.status in (408, 429)


async def serve(context: Context, generation: Generation, headers: Mapping[str, str], trace: Trace) -> Answer:
    """Attempt a request until it succeeds, or its attempts or its time are used up.

    Raises:
        ProxyError: the last attempt's error.
    """
    needs = Needs(
        model=generation.model,
        sequences=generation.sequences,
        combined_only=generation.combined_only,
        told=generation.endpoint is not Endpoint.BATCH,
        short=generation.tokens < context.settings.disagg_min_tokens,
        prefix=prefix(generation, PREFIX_BYTES) if context.rules.policy is Policy.PREFIX_AFFINITY else b"",
        hands_off=context.router is not None
        and context.settings.first_token is Writer.PREFILL
        and may_continue(context, generation),
    )
    failures = Failures()
    part = Migration(context, generation, needs=needs, headers=headers, trace=trace, failures=failures).part
    if monotonic() - context.started < context.settings.ping_ttl_s:
        await _engines_known(context)
    if generation.model is not None and not context.choices.serves(context.registry.view(), generation.model):
        await context.look_again()  # an adapter may have been loaded since the engines were asked
    if context.router is not None:
        context.router.arrived(monotonic(), generation.tokens, context.registry.view())
    while True:
        route, claim = await admitted(context, generation, needs, failures)
        _begin(context, trace, failures.last)
        failures.route = route
        if context.router is not None and failures.prediction is not None:
            trace.journey = context.router.begin(
                route,
                generation.tokens,
                failures.prediction,
                monotonic(),
                sequences=generation.sequences,
                streamed=generation.stream,
            )
        attempt = Attempt(context, generation, headers, trace, claim, part=part)
        try:
            answer = await attempt.answer(route)
        except ProxyError as error:
            if not worth_another(error) or _spent(context, trace):
                raise
            failures.add(error, attempt.route or route, prefilled=trace.prefilled is not None)
        else:
            failures.route = attempt.route
            return answer


async def _engines_known(context: Context) -> None:
    """Wait for the first engine: a proxy that has just started knows none before they ping. The wait is no longer than pings take."""
    end = context.started + context.settings.ping_ttl_s
    while monotonic() < end and not context.stopping and not is_ready(context.registry.view(), context.trust):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


def _spent(context: Context, trace: Trace) -> bool:
    settings = context.settings
    late = monotonic() - trace.arrived > settings.retry_budget_s
    return late or trace.retries >= settings.retries or context.over


def _begin(context: Context, trace: Trace, failure: ProxyError | None) -> None:
    trace.prefilled, trace.prefill = None, ""
    trace.end_journey()
    trace.handed_off, trace.kept_back = False, ""
    if failure is not None:
        trace.retries += 1
        context.metrics.retried(failure.cause)
        logger.warning("request is tried again", extra={"id": trace.uuid, "cause": failure.cause})
