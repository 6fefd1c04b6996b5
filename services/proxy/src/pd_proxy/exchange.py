"""One attempt at a request: prefill, hand-over, decode, with the rules that keep KV safe.

1. Decode hears of a request only after prefill answered 200, and only if it is still the process that got the KV.
2. Prefill and the opening of decode run in tasks of their own, so the client's leaving cannot cancel them half-way.
3. KV that prefill pushed is consumed: if nobody waits any more, or decode turned the request down before running it, decode
   gets the same request for one token. Not so if decode may have run it: a P2pNccl decode that has consumed its KV would
   wait for it a second time, for ever.
4. A decode request is aborted (its connection closed) only after its first byte or a grace time, when the engine itself
   knows it and frees its KV; closed earlier, it may be dropped by the HTTP server with the KV still there.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

from pd_proxy import rewrite
from pd_proxy.answers import Answer, Stream, Whole, fetch, open_stream
from pd_proxy.budget import Claim
from pd_proxy.context import Context
from pd_proxy.errors import (
    BrokenReplyError,
    NotAskedError,
    PrefillTimeoutError,
    ProxyError,
    RefusedError,
    RefusedInStreamError,
    RestartedError,
    UnreachableError,
)
from pd_proxy.generation import Generation
from pd_proxy.pairing import Pair, Route, Solo
from pd_proxy.registry import Instance, State
from pd_proxy.trace import Trace
from pd_proxy.transfer import HandOver, Leg, Plan, plain, plan

logger = logging.getLogger(__name__)

# An engine that turns down even a request for one token for so many probe intervals will not get better by being asked.
DRAIN_ATTEMPTS: Final = 60


async def attempt(
    context: Context, generation: Generation, headers: Mapping[str, str], route: Route, trace: Trace, *, claim: Claim
) -> Answer:
    """Serve a request over one route, under an id of its own; a retry is another call. `claim` is given back when KV is there.

    Raises:
        ProxyError: if it fails before the client could be sent a byte.
    """
    if isinstance(route, Solo):
        return await _solo(context, generation, headers, route.engine, trace)
    return await _pair(context, generation, plan(route, generation.fields, headers), route, trace, claim=claim)


async def _solo(
    context: Context, generation: Generation, headers: Mapping[str, str], engine: Instance, trace: Trace
) -> Answer:
    trace.uuid, leg = plain(generation.fields, headers)
    trace.decode = engine.name
    trace.dispatched = monotonic()
    return await _open(context, generation, engine, leg, b"")


async def _pair(
    context: Context, generation: Generation, plan: Plan, pair: Pair, trace: Trace, *, claim: Claim
) -> Answer:
    trace.uuid, trace.prefill, trace.decode = plan.uuid, pair.prefill.name, pair.decode.name
    trace.dispatched = monotonic()
    handover = await _prefilled(context, generation, plan, pair, claim)
    # No await between here and the next task: a client that leaves now must not leave KV behind.
    trace.prefilled = monotonic()
    opening = context.tasks.spawn(_decode(context, generation, plan, handover, pair.decode))
    opening.add_done_callback(lambda _: claim.release())
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        context.tasks.spawn(_let_go(opening, context.settings.abort_grace_s if handover.pushed else 0))
        raise


async def _prefilled(context: Context, generation: Generation, plan: Plan, pair: Pair, claim: Claim) -> HandOver:
    try:
        return plan.receive(await prefill(context, generation.endpoint, plan, pair, claim))
    except PrefillTimeoutError:
        raise  # it still pushes; the claim is given back after the drain
    except ProxyError:
        claim.release()
        raise


async def prefill(context: Context, path: str, plan: Plan, pair: Pair, claim: Claim | None = None) -> bytes:
    """Run prefill and return the body of its 200. If nobody waits for it to the end, decode consumes what it pushes.

    `claim` is given back in that case only.

    Raises:
        PrefillTimeoutError: after PREFILL_TIMEOUT_S; prefill itself goes on.
        UpstreamError: if it fails.
    """
    task = context.tasks.spawn(ask(context, pair.prefill, path, plan.prefill))
    try:
        async with asyncio.timeout(context.settings.prefill_timeout_s):
            return await asyncio.shield(task)
    except TimeoutError:
        _drain_later(context, path, plan, pair.decode, task, claim=claim)
        raise PrefillTimeoutError(f"{pair.prefill.name} did not answer within PREFILL_TIMEOUT_S") from None
    except asyncio.CancelledError:
        _drain_later(context, path, plan, pair.decode, task, claim=claim)
        raise


def _drain_later(
    context: Context,
    path: str,
    plan: Plan,
    decode: Instance,
    prefilling: "asyncio.Task[bytes]",
    *,
    claim: Claim | None,
) -> None:
    """Nobody waits for this prefill any more; what it will have pushed is consumed when it is done."""

    def drain_if_pushed(task: "asyncio.Task[bytes]") -> None:
        work: asyncio.Task[Any] = task
        if not task.cancelled() and task.exception() is None:
            work = context.tasks.spawn(_drain_answer(context, path, plan, decode, task.result()))
        if claim is not None:
            work.add_done_callback(lambda _: claim.release())

    prefilling.add_done_callback(drain_if_pushed)


async def _decode(context: Context, generation: Generation, plan: Plan, handover: HandOver, decode: Instance) -> Answer:
    try:
        engine = _still_there(context, decode)
        return await _open(context, generation, engine, handover.decode(), plan.secret)
    except RefusedInStreamError:
        raise  # decode ran it
    except (NotAskedError, RefusedError, UnreachableError):
        context.tasks.spawn(_drain(context, generation.endpoint, handover, decode))
        raise


def _still_there(context: Context, decode: Instance) -> Instance:
    """The process that prefill pushed to, if it may be asked.

    Raises:
        RestartedError: if another one took its place; it would wait for KV that its predecessor got.
        NotAskedError: if it stands still, which one more request would not mend.
    """
    now = context.registry.current(decode)
    if now is None:
        raise RestartedError(f"{decode.name} restarted while prefill ran")
    if now.state is State.SUSPECT:
        raise NotAskedError(f"{decode.name} stands still")
    return now


async def _open(context: Context, generation: Generation, engine: Instance, leg: Leg, secret: bytes) -> Answer:
    if not generation.stream:
        return Whole(rewrite.reply(await ask(context, engine, generation.endpoint, leg, whole=True), secret))
    flight = context.flights.open(engine)
    with _unreachable_noted(context, engine):
        return await open_stream(context.upstream, flight, generation.endpoint, leg, secret)


async def ask(context: Context, engine: Instance, path: str, leg: Leg, *, whole: bool = False) -> bytes:
    """Send an engine one request and return the body of its 200; `whole` as in `Flight`.

    Raises:
        UpstreamError: for anything else.
    """
    flight = context.flights.open(engine, whole=whole)
    with _unreachable_noted(context, engine):
        return await fetch(context.upstream, flight, path, leg)


@contextmanager
def _unreachable_noted(context: Context, engine: Instance) -> Iterator[None]:
    """An engine that refuses connections gets no further request until its next good health check."""
    try:
        yield
    except UnreachableError as error:
        context.noted(context.registry.unhealthy(engine, error.message, certain=True))
        raise


async def _let_go(opening: "asyncio.Task[Answer]", grace_s: float) -> None:
    """End a decode request whose client has left; see rule 4."""
    await asyncio.wait({opening}, timeout=grace_s)
    if not opening.done():
        opening.cancel()
    elif not opening.cancelled() and opening.exception() is None:
        answer = opening.result()
        if isinstance(answer, Stream):
            answer.close()


async def _drain_answer(context: Context, path: str, plan: Plan, decode: Instance, answer: bytes) -> None:
    try:
        handover = plan.receive(answer)
    except BrokenReplyError:
        return  # an answer without parameters keeps no KV for anybody
    await _drain(context, path, handover, decode)


async def _drain(context: Context, path: str, handover: HandOver, decode: Instance) -> None:
    """Have decode consume what prefill pushed.

    Tried again only where decode cannot have run it, that is, turned it down or was not reached; a second try could meet an
    engine that has consumed it. Nothing is left to do if nothing waits, or if it went with the process that had it.
    """
    for _ in range(DRAIN_ATTEMPTS):
        if not handover.pushed or context.registry.current(decode) is None:
            return
        try:
            await ask(context, decode, path, handover.drain())
        except ProxyError as error:
            if not _turned_down(error):
                break
            await asyncio.sleep(context.settings.probe_interval_s)
        else:
            context.metrics.drained("done")
            return
    context.metrics.drained("failed")
    logger.warning("drain failed", extra={"instance": decode.name})


def _turned_down(error: ProxyError) -> bool:
    return isinstance(error, UnreachableError) or (isinstance(error, RefusedError) and error.status >= 500)
