"""One attempt at a request: prefill, hand-over, decode, with the rules that keep KV safe.

1. Decode hears of a request only after prefill answered 200, and only if it is still the process that got the KV.
2. Prefill and the opening of decode run in tasks of their own, so the client's leaving cannot cancel them half-way. Prefill
   is ended only after GIVE_UP_S, and what it may have pushed by then, or before it failed, is a debt (see 3).
3. KV that prefill pushed is consumed: if nobody waits any more, or decode turned the request down before running it, decode
   gets the same request for one token. If decode may have run it, that is a debt (`debts`): a P2pNccl decode that has consumed
   its KV would wait for it a second time, for ever. Decode is never asked for KV more often than it was pushed.
4. A decode request is aborted (its connection closed) only after its first byte or a grace time, when the engine itself
   knows it and frees its KV; closed earlier, it may be dropped by the HTTP server with the KV still there.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

from pd_proxy.context import Context
from pd_proxy.engines.pairing import Pair, Route, Solo
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import (
    BrokenReplyError,
    NotAskedError,
    PrefillTimeoutError,
    ProxyError,
    RefusedError,
    RefusedInStreamError,
    RestartedError,
    UnreachableError,
    UpstreamError,
)
from pd_proxy.kv.budget import Claim
from pd_proxy.kv.debts import Debt
from pd_proxy.kv.transfer import HandOver, Leg, Plan, plain, plan
from pd_proxy.protocol import rewrite
from pd_proxy.protocol.generation import Generation
from pd_proxy.request.trace import Trace
from pd_proxy.upstream.answers import Answer, Stream, Whole, fetch, open_stream

logger = logging.getLogger(__name__)


async def attempt(
    context: Context, generation: Generation, headers: Mapping[str, str], route: Route, trace: Trace, *, claim: Claim
) -> Answer:
    """Serve a request over one route, under an id of its own; a retry is another call. `claim` is given back when KV is there.

    Raises:
        ProxyError: if it fails before the client could be sent a byte.
    """
    if isinstance(route, Solo):
        return await _solo(context, generation, headers, route.engine, trace)
    return await _pair(
        context, generation, plan(route, generation.endpoint, generation.fields, headers), route, trace, claim=claim
    )


async def _solo(
    context: Context, generation: Generation, headers: Mapping[str, str], engine: Instance, trace: Trace
) -> Answer:
    trace.uuid, leg = plain(generation.endpoint, generation.fields, headers)
    trace.decode = engine.name
    trace.dispatched = monotonic()
    return await _open(context, generation, engine, leg, b"")


async def _pair(
    context: Context, generation: Generation, plan: Plan, pair: Pair, trace: Trace, *, claim: Claim
) -> Answer:
    trace.uuid, trace.prefill, trace.decode = plan.uuid, pair.prefill.name, pair.decode.name
    trace.dispatched = monotonic()
    claim.covers(pair, generation.endpoint, plan)
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
    task = context.tasks.spawn(_prefill(context, path, plan, pair))
    try:
        async with asyncio.timeout(context.settings.prefill_timeout_s):
            return await asyncio.shield(task)
    except TimeoutError:
        _drain_later(context, path, plan, pair.decode, task, claim=claim)
        raise PrefillTimeoutError(f"{pair.prefill.name} did not answer within PREFILL_TIMEOUT_S") from None
    except asyncio.CancelledError:
        _drain_later(context, path, plan, pair.decode, task, claim=claim)
        raise


async def _prefill(context: Context, path: str, plan: Plan, pair: Pair) -> bytes:
    try:
        return await ask(context, pair.prefill, path, plan.prefill)
    except (UnreachableError, RefusedError):
        raise
    except UpstreamError:
        # It may have pushed before it failed, and decode will not hear of this request otherwise.
        if plan.stand_in is not None:
            context.owe(Debt(pair.decode.zmq_address, path, plan.engine_id, plan.stand_in(), asked=False))
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
    with owing(context, generation.endpoint, handover, decode):
        engine = _still_there(context, decode)
        return await _open(context, generation, engine, handover.decode(), plan.secret)


@contextmanager
def owing(context: Context, path: str, handover: HandOver, decode: Instance, *, tries: int = 0) -> Iterator[None]:
    """See to the KV that decode was handed, if decode fails here or nobody waits for its first byte.

    It is drained if decode surely did not run the request, or would only fail if it did (NIXL); otherwise it is a debt. After the
    first try (`tries` 0) it is a debt in any case.
    """
    try:
        yield
    except (ProxyError, TimeoutError, asyncio.CancelledError) as error:
        stand_in = handover.stand_in
        if isinstance(error, RefusedInStreamError):
            pass  # decode ran it
        elif stand_in is not None and (tries or not _never_ran(error)):
            context.owe(Debt(decode.zmq_address, path, handover.engine_id, stand_in(), tries=tries))
        elif not tries and isinstance(error, ProxyError):
            context.tasks.spawn(_drain(context, path, handover, decode))
        raise


def _never_ran(error: BaseException) -> bool:
    """Decode refused the request for what it is; it still has the KV, and its wits."""
    return isinstance(error, RefusedError) and error.status < 500


def _any_state(context: Context, decode: Instance) -> Instance:
    """The process that prefill pushed to.

    Raises:
        RestartedError: if another one took its place; it would wait for KV that its predecessor got.
    """
    now = context.registry.current(decode)
    if now is None:
        raise RestartedError(f"{decode.name} restarted while prefill ran")
    return now


def _still_there(context: Context, decode: Instance) -> Instance:
    """The process that prefill pushed to, if it may be asked.

    Raises:
        RestartedError: if another one took its place; it would wait for KV that its predecessor got.
        NotAskedError: if it stands still, which one more request would not mend.
    """
    now = _any_state(context, decode)
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
    """Have decode consume what prefill pushed and decode never ran. NIXL's KV that is not consumed has a lease, which ends."""
    if not handover.pushed:
        return
    try:
        with owing(context, path, handover, decode, tries=1):
            await ask(context, _any_state(context, decode), path, handover.drain())
    except ProxyError:
        pass  # that is a debt now
    else:
        context.metrics.drained("done")
