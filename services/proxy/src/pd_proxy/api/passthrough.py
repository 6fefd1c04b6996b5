"""Requests that prefill and decode cannot share: they go to any engine, to a combined one, or to all engines."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
from quart import Blueprint, Response, request

from pd_contracts import sse
from pd_contracts.names import Role
from pd_proxy import __version__
from pd_proxy.api.afterwards import afterwards
from pd_proxy.api.body import body_of
from pd_proxy.api.routes import check_key
from pd_proxy.context import Context
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import (
    NoInstanceError,
    NotDisaggregableError,
    RefusedError,
    ShuttingDownError,
    UnknownModelError,
    UpstreamError,
)
from pd_proxy.protocol import unread
from pd_proxy.protocol.scrub import scrub
from pd_proxy.protocol.unread import Unread
from pd_proxy.request.serving import JSON, parsed
from pd_proxy.upstream.documents import check_json
from pd_proxy.upstream.models import ask_version

# Any engine knows the tokenizer.
PATHS: Final = (
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/responses/render",
    "/v1/messages/render",
    "/cohere/v2/chat/render",
)
# Prefill and decode cannot share these: they need one engine with a suitable model.
COMBINED_PATHS: Final = (
    "/v1/embeddings",
    "/v2/embed",
    "/pooling",
    "/classify",
    "/score",
    "/v1/score",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/generative_scoring",
    "/v1/decisions",
    "/v1/systemone",
    "/cohere/v2/chat",
)
TIMEOUT_S: Final = 30.0


class Passthrough:
    """Handlers, bound to one proxy's context."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._versions: dict[int, str | None] = {}

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("passthrough", __name__)
        for path in PATHS:
            blueprint.add_url_rule(path, path[1:], self.any_engine, methods=["POST"], provide_automatic_options=False)
        for path in COMBINED_PATHS:
            blueprint.add_url_rule(
                path, path[1:], self.combined_engine, methods=["POST"], provide_automatic_options=False
            )
        blueprint.add_url_rule("/version", "version", self.version, methods=["GET"])
        return blueprint

    async def version(self) -> Response:
        """This proxy's version and, by name, those of the ready engines; null for an engine that does not tell its version."""
        engines = [i for i in self._context.registry.view() if i.state is State.READY]
        # A process keeps its version, so each engine is asked once, however often clients ask.
        known = {i.incarnation: self._versions[i.incarnation] for i in engines if i.incarnation in self._versions}
        asked = [i for i in engines if i.incarnation not in known]
        said = await asyncio.gather(*(self._version(engine) for engine in asked))
        self._versions = known | {i.incarnation: version for i, version in zip(asked, said, strict=True)}
        versions = {i.name: self._versions.get(i.incarnation) for i in engines}
        return Response(
            msgspec.json.encode({"version": __version__, "engines": versions}), content_type="application/json"
        )

    async def _version(self, engine: Instance) -> str | None:
        said = await ask_version(self._context.upstream, engine, self._context.settings.health_timeout_s)
        return said or engine.version or None  # the version in its ping

    async def any_engine(self) -> Response:
        """The answer of a ready engine that serves the model; if that gives none, of another one."""
        check_key(self._context)
        asked = await self._asked()
        engines = _able(self._context, asked.model)
        turn = next(self._context.turns)
        failure: UpstreamError | None = None
        for number in range(len(engines)):
            engine = engines[(turn + number) % len(engines)]
            try:
                answer = await self._context.upstream.call(engine, request.path, asked.body, TIMEOUT_S)
                check_json(answer, engine.name)
            except RefusedError as error:
                if error.status < 500:
                    raise
                failure = error
            except UpstreamError as error:
                failure = error
            else:
                return Response(answer, content_type="application/json")
        raise failure or NoInstanceError("no engine is ready")

    async def combined_engine(self) -> Response:
        """The answer of a ready combined engine that serves the model."""
        context = self._context
        check_key(context)
        asked = await self._asked()
        engine = _combined(context, asked.model)
        flight = context.flights.open(engine, whole=True)
        try:
            answer = await context.upstream.forward(
                engine, request.path, asked.body, asked.content_type, context.settings.give_up_s
            )
        except BaseException as error:
            flight.land(failed=isinstance(error, UpstreamError) and error.status >= 500)
            raise
        if not answer.is_stream:
            answer.close()
            flight.land()
            return Response(answer.first, content_type=answer.content_type)

        async def pieces() -> AsyncIterator[bytes]:
            yield answer.first
            try:
                async for piece in answer.pieces():
                    yield piece
            except UpstreamError as error:
                flight.land(failed=True)
                yield b"\n\n" + sse.encode_event(error.body())  # an event may have been cut

        afterwards(request, answer.close)
        afterwards(request, flight.land)
        response = Response(pieces(), content_type=answer.content_type)
        response.timeout = None
        return response

    async def _asked(self) -> Unread:
        """What the engine gets of the client's request: its body, without what a client must not say. No header and no query goes on."""
        body = await body_of(request, self._context)
        if self._context.refusing:
            raise ShuttingDownError("the proxy is shutting down")
        kind = request.headers.get("Content-Type", JSON)
        return await parsed(len(body), unread.of, kind, body, self._context.settings.max_body_items)


async def everywhere(context: Context, path: str) -> dict[str, str]:
    """POST to every ready engine; returns, by engine name, "ok" or what went wrong."""

    async def one(engine: Instance) -> str:
        try:
            await context.upstream.call(engine, path, b"", TIMEOUT_S)
        except UpstreamError as error:
            return scrub(error.message, (engine.http_address, engine.zmq_address))
        return "ok"

    engines = [i for i in context.registry.view() if i.state is State.READY]
    said = await asyncio.gather(*(one(engine) for engine in engines))
    return {engine.name: answer for engine, answer in zip(engines, said, strict=True)}


def _combined(context: Context, model: str | None) -> Instance:
    """The least loaded combined engine that serves the model.

    Raises:
        NotDisaggregableError: if no combined engine is known.
        NoInstanceError: if no combined engine is ready.
    """
    combined = [i for i in context.registry.view() if i.role is Role.COMBINED and i.state is not State.LOST]
    if not combined:
        raise NotDisaggregableError(f"{request.path} needs a combined engine, and this deployment has none")
    able = [i for i in _able(context, model) if i.role is Role.COMBINED]
    if not able:
        raise NoInstanceError("no combined engine that serves the model is ready")
    return min(able, key=context.flights.load)


def _able(context: Context, model: str | None) -> Sequence[Instance]:
    ready = [i for i in context.registry.view() if i.state is State.READY]
    able = [i for i in ready if model is None or model in i.models]
    if ready and not able:
        raise UnknownModelError(f"The model `{(model or '')[:200]}` does not exist.")
    return able
