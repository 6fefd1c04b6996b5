"""An attempt with P2pConnector, in which decode gets its request at once: prefill sends it the KV and the first token directly.

Either prefill writes the first token and decode continues ("hand-off"), or decode writes the whole answer ("decode-first").
Unfinished work leaves nothing behind at the engines, so requests that are not needed any more are simply ended.
"""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from pd_proxy.context import Context
from pd_proxy.engines.pairing import Pair
from pd_proxy.errors import BrokenReplyError, NotContinuedError, PrefillTimeoutError, RefusedError
from pd_proxy.kv.keyed import Keyed
from pd_proxy.kv.transfer import check_named
from pd_proxy.protocol import first_token, rewrite
from pd_proxy.protocol.continued import Begun, end_offset, joined
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import REFUSED, UNNAMED, wants_logprobs
from pd_proxy.protocol.first_token import LENGTH, FirstToken
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.line_ends import with_lf
from pd_proxy.protocol.progress import Restart
from pd_proxy.protocol.rewrite import Cleaning
from pd_proxy.protocol.usage import NOTHING_SAID, Cached, said
from pd_proxy.request.announcement import Announcement
from pd_proxy.request.ask import ask, ask_ahead, ask_for_stream
from pd_proxy.request.exchange import EVIDENCE_S
from pd_proxy.request.part import Part
from pd_proxy.request.trace import Trace
from pd_proxy.settings import When
from pd_proxy.tasks import result_of
from pd_proxy.upstream.answers import Answer, Stream, Whole, Written
from pd_proxy.upstream.flights import Flight

# How long decode may take to refuse a request that prefill has refused; its reason is the one that plain vLLM gives.
VERDICT_S: Final = 1.0
Choose: TypeAlias = Callable[[], Pair]


class KeyedAttempt:
    """One request through one pair, under one key."""

    def __init__(
        self,
        context: Context,
        keyed: Keyed,
        generation: Generation,
        trace: Trace,
        part: Part,
        *,
        choose: Choose | None = None,
    ) -> None:
        """`generation` is the client's request; `keyed` asks engines for more. `part` finds an engine to continue if decode fails.

        `choose` returns the pair once prefill has answered, if decode is not known before.
        """
        self._context = context
        self._choose = choose
        self._keyed = keyed
        self._trace = trace
        # Prefill may answer when decode has died and the request has gone elsewhere.
        self._journey = trace.journey
        self._part = part
        self._generation = generation
        self._path = generation.endpoint
        self._prefill, self._decode = keyed.pair.prefill, keyed.pair.decode

    async def hand_off(self) -> Answer:
        """Have prefill write the first token and decode the others.

        Raises:
            ProxyError: if it fails before the client could be sent a byte.
        """
        at_once = self._context.settings.decode_asked is When.AT_ONCE
        announced = Announcement(self._context, self._keyed, early=at_once and self._choose is None)
        try:
            body = await self._within(ask(self._context, self._prefill, self._path, self._keyed.first_token()))
            self._trace.prefilled = monotonic()
            first = self._read(body)
            self._decided()
            if first is None:
                return await self._instead(UNNAMED, announced)
            return await self._behind(first, announced)
        finally:
            announced.end()

    def _decided(self) -> None:
        """Choose decode, if it is not known yet."""
        if self._choose is not None:
            pair = self._choose()
            self._keyed, self._decode = replace(self._keyed, pair=pair), pair.decode
            self._trace.decode = pair.decode.name
        self._trace.computed(self._decode)

    def _read(self, body: bytes) -> FirstToken | None:
        """Prefill's answer; None if it did not name its token.

        Raises:
            UpstreamError: if the answer is invalid.
        """
        engine = self._prefill
        addresses = (engine.http_address, engine.zmq_address)
        body = with_lf(body) if self._generation.stream else body
        if not self._generation.stream:
            rewrite.checked(self._path, body, engine.name, addresses)
            check_named(body, self._keyed.key)  # a stream's events do not hold it
        elif not rewrite.has_event(body):
            raise BrokenReplyError(f"{engine.name} answered 200 without a whole event")
        else:
            rewrite.raise_first_error(body, addresses)
        try:
            return first_token.read(self._generation, body)
        except BrokenReplyError:
            return None

    async def decode_first(self) -> Answer:
        """Have decode write the whole answer; it is asked at the same time as prefill.

        Raises:
            ProxyError: as `hand_off`.
        """
        flight = self._flight()
        flight.early = True
        prefilling = asyncio.create_task(self._checked(flight))
        prefilling.add_done_callback(_seen)
        decoding = asyncio.create_task(self._all_by_decode(flight, prefilling))
        try:
            await asyncio.wait({prefilling, decoding}, return_when=asyncio.FIRST_COMPLETED)
            if not decoding.done():
                await self._verdict(prefilling, decoding)
            self._trace.prefilled = self._trace.prefilled or monotonic()
            return await decoding
        except BaseException:
            prefilling.cancel()
            _drop(decoding)
            raise

    async def _checked(self, flight: Flight) -> Cached | None:
        """Wait for prefill; decode's silence counts from then on. Returns prefill's number of cached tokens."""
        engine = self._prefill
        body = await self._within(ask(self._context, engine, self._path, self._keyed.prefill()))
        fields = rewrite.checked(self._path, body, engine.name, (engine.http_address, engine.zmq_address))
        check_named(body, self._keyed.key)
        self._trace.prefilled = self._trace.prefilled or monotonic()
        if self._journey is not None:
            self._journey.computed(monotonic(), self._decode)
        flight.due()
        return said(self._path, fields.get("usage"))

    @staticmethod
    async def _verdict(prefilling: "asyncio.Task[Cached | None]", decoding: "asyncio.Task[Answer]") -> None:
        """Wait for prefill.

        Raises:
            UpstreamError: if it fails; if it refuses the request, decode's error.
        """
        try:
            await prefilling
        except RefusedError as error:
            if error.status < 500:
                await asyncio.wait({decoding}, timeout=VERDICT_S)
            verdict = decoding.exception() if decoding.done() else None
            raise verdict if isinstance(verdict, RefusedError) else error from None

    async def _within(self, asking: Coroutine[Any, Any, bytes]) -> bytes:
        """Wait for prefill up to PREFILL_TIMEOUT_S. A late one is left running for a while, as evidence about its engine."""
        task = self._context.tasks.spawn(asking)
        try:
            return await result_of(task, self._context.settings.prefill_timeout_s)
        except TimeoutError:
            asyncio.get_running_loop().call_later(EVIDENCE_S, task.cancel)
            raise PrefillTimeoutError(f"{self._prefill.name} did not answer within PREFILL_TIMEOUT_S") from None
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _behind(self, first: FirstToken, announced: Announcement) -> Answer:
        """The client's answer, now that prefill's token is known."""
        trace = self._trace
        if first.reason != LENGTH:
            trace.decode, trace.prefill = trace.prefill, ""
            return self._complete(first)
        reason = first_token.held_back(self._generation, first)
        if reason is None:
            try:
                return await self._rest(first, announced)
            except RefusedError as error:
                if error.status >= 500:
                    raise
                # Decode does not continue this request. It may run it as a whole, or refuse it as plain vLLM does.
                reason = REFUSED
        return await self._instead(reason, announced, first.cached(self._path))

    async def _instead(self, reason: str, announced: Announcement, cached: Cached | None = None) -> Answer:
        """Have decode write the whole answer instead of a hand-off."""
        self._trace.kept_back = reason
        if announced.sent:
            announced.end()
            self._keyed = self._keyed.again()
            self._trace.uuid = self._keyed.uuid
        return await self._all_by_decode(self._flight(), cached=cached)

    def _complete(self, first: FirstToken) -> Answer:
        if self._generation.stream:
            return Written(first_token.complete_events(self._generation, first))
        return Whole(first_token.complete_body(self._generation, first))

    async def _rest(self, first: FirstToken, announced: Announcement) -> Answer:
        if self._generation.stream:
            return await self._rest_of_stream(first, announced)
        body = await announced.body(first)
        if body is not None:
            try:
                return Whole(joined(self._generation, first, body))
            except NotContinuedError:
                pass  # prefill's token did not reach decode, but it is known here
        leg = self._after(announced).going_on(first.prompt, first.token)
        body = await ask(self._context, self._decode, self._path, leg, whole=True)
        return Whole(joined(self._generation, first, body))

    async def _rest_of_stream(self, first: FirstToken, announced: Announcement) -> Stream:
        found, keyed = await announced.reply(first), self._keyed
        if found is None:
            flight, keyed = self._flight(), self._after(announced)
            leg = keyed.going_on(first.prompt, first.token)
            found = flight, await ask_ahead(self._context, self._path, leg, flight)
        offset = end_offset(first.logprobs) if self._counts_characters() else None
        begun = Begun(1, self._keyed.uuid, first.created, offset)
        part = self._part.behind(begun, Restart(first.prompt, first.created, [first.token]))
        if part.progress is not None and part.known is not None:
            part.progress.begin(part.known, first.text)
        rewriter = part.rewriter(self._decode, keyed.uuid, Cleaning(self._path, cached=first.cached(self._path)))
        stream = Stream(*found, rewriter, first_token.opening(self._generation, first))
        if offset is None:  # otherwise the next text offset is unknown
            stream.successor = part.successor(rewriter)
        return stream

    def _after(self, announced: Announcement) -> Keyed:
        """Decode's next request, under a new id if decode may still have the announcement's."""
        announced.end()
        return self._keyed.again() if announced.sent else self._keyed

    def _counts_characters(self) -> bool:
        return self._path is Endpoint.COMPLETIONS and wants_logprobs(self._generation)

    async def _all_by_decode(
        self, flight: Flight, prefilling: "asyncio.Task[Cached | None] | None" = None, cached: Cached | None = None
    ) -> Answer:
        """Have decode write the whole answer; prefill's number of cached tokens may come later."""
        engine, leg = self._decode, self._keyed.decode()
        if not self._generation.stream:
            body = await ask(self._context, engine, self._path, leg, flight=flight)
            if prefilling is not None:
                await asyncio.wait({prefilling}, timeout=VERDICT_S)
                cached = _result(prefilling)
            cleaning = Cleaning(self._path, cached=cached)
            return Whole(rewrite.reply(body, cleaning, engine.name, (engine.http_address, engine.zmq_address)))
        cleaning = Cleaning(self._path, cached=cached if prefilling is None else NOTHING_SAID)
        rewriter = self._part.rewriter(engine, self._keyed.uuid, cleaning)
        if prefilling is not None:
            prefilling.add_done_callback(lambda task: setattr(rewriter, "cached", _result(task) or NOTHING_SAID))
        stream = await ask_for_stream(self._context, self._path, leg, rewriter, flight)
        stream.successor = self._part.successor(rewriter)
        return stream

    def _flight(self) -> Flight:
        return self._context.flights.open(self._decode, whole=not self._generation.stream)


def _result(task: "asyncio.Task[Cached | None]") -> Cached | None:
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


def _seen(task: "asyncio.Task[Any]") -> None:
    """Retrieve a task's exception, so that asyncio does not report it; the result is not needed."""
    if not task.cancelled():
        task.exception()


def _drop(decoding: "asyncio.Task[Answer]") -> None:
    """End decode's request, whose answer is not needed."""

    def close(task: "asyncio.Task[Answer]") -> None:
        if not task.cancelled() and task.exception() is None and isinstance(task.result(), Stream):
            task.result().close()  # type: ignore[union-attr]

    decoding.cancel()
    decoding.add_done_callback(close)
