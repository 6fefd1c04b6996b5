"""Migration: a stream whose engine died is continued by another one, from the prompt and the client's tokens; the client sees a pause.

Only requests whose following tokens would be the same on any engine are migrated (`exclusions.may_migrate`), apart from numerical
differences between batches. With a seed, that is any engine that draws by seed and position in the same way. Migration is limited to
RETRIES more engines, and to QUEUE_TIMEOUT_S of waiting for one.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from msgspec.structs import replace

from pd_contracts.names import Connector, Role
from pd_proxy.context import Context
from pd_proxy.engines.pairing import Needs, Pair, Route, Solo
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import NoInstanceError, NotContinuedError, ProxyError, UpstreamError
from pd_proxy.kv.budget import Claim
from pd_proxy.kv.keyed import going_on, takes_chat_ids
from pd_proxy.protocol.continued import Begun
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import asks, limit_of, may_hand_off, may_migrate, seeded, stops_of
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.progress import Progress, Restart
from pd_proxy.request.attempt import Attempt
from pd_proxy.request.part import Part
from pd_proxy.request.route import Failures, admitted
from pd_proxy.request.trace import Trace
from pd_proxy.router import Journey
from pd_proxy.upstream.answers import Stream, Written

logger = logging.getLogger(__name__)

LOOK_S: Final = 0.1


class Migration:
    """The migrations of one request; remembers the engines that it has used."""

    def __init__(
        self,
        context: Context,
        generation: Generation,
        *,
        needs: Needs,
        headers: Mapping[str, str],
        trace: Trace,
        failures: Failures,
    ) -> None:
        self._context = context
        self._generation = generation
        self._needs = needs
        self._headers = headers
        self._trace = trace
        self._failures = failures
        self._prefilled = True  # whether prefill had answered before the last failure
        self._draws = ""  # how the next engine must draw for a seed
        self._progress = progress_of(context, generation)

    @property
    def part(self) -> Part:
        """The whole answer. It is not kept here: a reference cycle would keep the request's body in memory for a while."""
        return Part(progress=self._progress, go_on=self.go_on, able=self._failures.allows)

    async def go_on(self, error: ProxyError, restart: Restart) -> Stream | None:
        """Have another engine continue from `restart`; None if no engine can, and then the client gets `error`."""
        self._trace.broken_off()
        stream = await self._go_on(error, restart)
        if stream is not None and self._context.over:
            stream.close()  # nobody else would end it
            stream = None
        if stream is None:
            self._context.metrics.migrated("failed")
        elif isinstance(stream, Stream):
            self._context.metrics.migrated("done")
        return stream

    async def _go_on(self, error: ProxyError, restart: Restart) -> Stream | None:
        progress = self._progress
        if progress is not None and progress.finished:
            return None if self._counts() else Written(b"")
        limit = limit_of(self._generation)
        if limit is not None and limit <= len(restart.tokens):
            return None
        if seeded(self._generation) and not self._drawn_alike():
            return None
        end = monotonic() + self._context.settings.queue_timeout_s
        while self._trace.migrations < self._context.settings.retries and not self._context.over:
            if self._failures.route is not None and not isinstance(error, NotContinuedError):
                self._failures.add(error, self._failures.route, prefilled=self._prefilled)
            self._trace.migrations += 1
            try:
                return await self._attempt(restart, end)
            except UpstreamError as failure:
                self._trace.broken_off()
                logger.warning(
                    "a stream could not be continued", extra={"id": self._trace.uuid, "cause": failure.cause}
                )
                error = failure
            except ProxyError:
                return None
        return None

    async def _attempt(self, restart: Restart, end: float) -> Stream | None:
        route, claim = await self._route(end)
        trace = Trace(self._trace.endpoint, journey=self._journey(route, restart))
        rest = replace(self._generation, fields=going_on(self._generation, restart.prompt, restart.tokens, {}))
        begun = Begun(len(restart.tokens), self._trace.uuid, restart.created, None, restart.skip, restart.skip_ids)
        part = replace(self.part.behind(begun, restart), able=self._able)
        attempt = Attempt(self._context, rest, self._headers, trace, claim, part=part)
        try:
            answer = await attempt.answer(route)
        finally:
            self._failures.route, self._prefilled = attempt.route or route, trace.prefilled is not None
        self._trace.decode = trace.decode
        logger.warning(
            "a stream is continued at another engine", extra={"id": self._trace.uuid, "instance": trace.decode}
        )
        return answer if isinstance(answer, Stream) else None

    def _journey(self, route: Route, restart: Restart) -> Journey | None:
        """The stream's entry in the books at its next engines, if there is a router."""
        before = self._trace.journey
        if before is not None:
            prompt = self._generation.tokens + len(restart.tokens)
            self._trace.journey = before.router.resume(before, route, prompt, monotonic())
        return self._trace.journey

    async def _route(self, end: float) -> tuple[Route, Claim]:
        """The next route, as for a new request; but if no engine is ready, wait until `end` for one to replace the dead one."""
        while True:
            try:
                return await admitted(self._context, self._generation, self._needs, self._failures, self._able)
            except (NoInstanceError, UpstreamError):
                if monotonic() > end or self._context.over:
                    raise
            await asyncio.sleep(LOOK_S)

    def _drawn_alike(self) -> bool:
        """Whether the engine that has failed drew by seed and position; then the next one must draw in the same way."""
        route = self._failures.route
        engine = route.decode if isinstance(route, Pair) else route.engine if isinstance(route, Solo) else None
        self._draws = engine.draws if engine is not None else self._draws
        return bool(self._draws)

    def _able(self, engine: Instance) -> bool:
        """Whether an engine can take part in the continuation; prefill draws no token of it."""
        if not self._failures.allows(engine):
            return False
        if engine.role is not Role.PREFILL and self._draws and engine.draws != self._draws:
            return False
        return self._generation.endpoint is not Endpoint.CHAT or self._takes_ids(engine)

    @staticmethod
    def _takes_ids(engine: Instance) -> bool:
        """Whether an engine accepts the prompt as token ids together with the connector's parameters."""
        return takes_chat_ids(engine) and (engine.role is Role.COMBINED or engine.connector is Connector.P2P)

    def _counts(self) -> bool:
        """Whether the client expects a last event in addition to the end mark."""
        return b"include_usage" in bytes(self._generation.fields.get("stream_options", b""))


def may_continue(context: Context, generation: Generation, rule: Callable[..., str | None] = may_hand_off) -> bool:
    """Whether an engine may continue this request, by `may_hand_off` or `may_migrate`. Those that will serve it are not known yet."""
    told = [instance.told for instance in context.registry.view()]
    return (
        rule(
            generation,
            by_position=any(one.draws for one in told),
            own_fields=[name for one in told for name in one.own_fields],
            own_limit=min((one.own_limit for one in told if one.own_limit), default=0),
        )
        is None
    )


def progress_of(context: Context, generation: Generation) -> Progress | None:
    """A record of what the client receives; None if no engine could continue this request."""
    if not context.settings.migrate or not generation.stream:
        return None
    if not may_continue(context, generation, may_migrate):
        return None
    return Progress(
        chat=generation.endpoint is Endpoint.CHAT,
        stops=stops_of(generation),
        shows_stop=asks(generation, "include_stop_str_in_output"),
        asked=asks(generation, "return_token_ids"),
    )
