"""The HTTP API."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus

import msgspec
from aiohttp import web

from pd_contracts.names import REQUEST_ID_HEADER, SIMULATED_ENGINE
from pd_simulator import __version__
from pd_simulator.api import fault_injection, messages, tokens
from pd_simulator.api.bodies import ChatBody, parse
from pd_simulator.api.generation import Generation, Rules
from pd_simulator.api.metrics import CONTENT_TYPE, registry_of, render
from pd_simulator.api.replies import EventReply, Reply, StreamReply, WholeReply
from pd_simulator.api.responses import ResponseShape, ResponseStream
from pd_simulator.api.shapes import BatchShape, ChatShape, ChunkShape, CompletionShape, Head, Shape, dumps
from pd_simulator.engine.loop import Engine
from pd_simulator.engine.request import Request
from pd_simulator.errors import ApiError, invalid, unknown_response
from pd_simulator.faults import Faults, FaultsError, read

MAX_BODY_BYTES = 64 << 20
_JSON = "application/json"
_SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class _TokenizeBody(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, object]] | None = None
    model: str | None = None
    return_token_strs: bool | None = False


class _DetokenizeBody(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


class Api:
    """Handlers of one engine."""

    def __init__(self, engine: Engine, rules: Rules) -> None:
        self._engine = engine
        self._rules = rules
        self._pieces = rules.tokenizer.output_json()
        self._faults = engine.machine.transfer.site.faults
        self._registry = registry_of(engine)
        self._created = int(time.time())

    def application(self) -> web.Application:
        layers = [_refusals, fault_injection.middleware(self._faults)]
        app = web.Application(middlewares=layers, client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/chat/completions/batch", self._batch)
        app.router.add_post(messages.PATH, self._messages)
        app.router.add_post(f"{messages.PATH}/count_tokens", self._count)
        app.router.add_post("/inference/v1/generate", self._tokens)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_get("/v1/responses/{id}", self._stored)
        app.router.add_post("/v1/responses/{id}/cancel", self._stored)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_get("/sim/board", self._board)
        app.router.add_get("/sim/books", self._books)
        app.router.add_get("/sim/faults", self._show_faults)
        app.router.add_post("/sim/faults", self._set_faults)
        return app

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._rules.completion, CompletionShape)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._rules.chat, ChatShape)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._rules.response, ResponseShape)

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._rules.batch, BatchShape)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, partial(messages.read, self._rules), messages.MessageShape)

    async def _count(self, request: web.Request) -> web.Response:
        return web.Response(body=messages.count(self._rules, await _json_body(request)), content_type=_JSON)

    async def _tokens(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, partial(tokens.read, self._rules), tokens.TokensShape)

    async def _stored(self, request: web.Request) -> web.StreamResponse:
        raise unknown_response(request.match_info["id"])

    async def _generate(
        self, request: web.Request, read: Callable[[bytes], Generation], shape: type[Shape]
    ) -> web.StreamResponse:
        arrival = time.monotonic()
        data = await _json_body(request)
        try:
            generation = read(data)
            response_id = shape.response_id(request.headers.get(REQUEST_ID_HEADER), generation.request_id)
            reply = self._reply(
                generation, shape(Head(response_id, int(time.time()), self._rules.model, generation.echo))
            )
            reply.requests = _requests(reply, arrival)
            self._engine.submit(reply.requests)
        except ApiError:
            self._give_back(data)
            raise
        try:
            if isinstance(reply, EventReply):
                return await _stream(request, reply, self._faults)
            body = await reply.body()
            if self._faults.die_mid_stream:
                fault_injection.cut(request)
            return web.Response(body=body, content_type=_JSON)
        finally:
            for sequence in reply.requests:
                self._engine.abort(sequence)  # the client may have left; for finished requests this does nothing

    def _reply(self, generation: Generation, shape: Shape) -> EventReply | WholeReply:
        tokenizer = self._rules.tokenizer
        if generation.stream and isinstance(shape, ResponseShape):
            return ResponseStream(generation, shape, tokenizer, self._engine.abort)
        if generation.stream and isinstance(shape, messages.MessageShape):
            return messages.MessageStream(generation, shape, tokenizer, self._engine.abort)
        if generation.stream and isinstance(shape, ChunkShape):
            return StreamReply(generation, shape, tokenizer, self._engine.abort, self._pieces)
        return WholeReply(generation, shape, tokenizer, self._engine.abort)

    def _give_back(self, data: bytes) -> None:
        """Tell prefill at once that a refused request will not fetch its KV (vLLM: `_with_kv_transfer_rejection_cleanup`)."""
        try:
            body = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # then it is unknown what it would have fetched
        params = body.get("kv_transfer_params") if isinstance(body, dict) else None
        if isinstance(params, dict):
            self._engine.machine.transfer.rejected(params)

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self._rules.model,
            "object": "model",
            "created": self._created,
            "owned_by": SIMULATED_ENGINE,
            "root": self._rules.model,
            "parent": None,
            "max_model_len": self._rules.max_model_len,
            "permission": [],
        }
        return _json({"object": "list", "data": [card]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._engine.failed else 200)

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": __version__, "engine": SIMULATED_ENGINE})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=render(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _tokenize(self, request: web.Request) -> web.Response:
        data = await _json_body(request)
        body = parse(data, _TokenizeBody)
        self._rules.check_model(body.model)
        if body.prompt is None and body.messages is None:
            msg = "Either prompt or messages must be provided"
            raise invalid(msg, "prompt")
        tokenizer = self._rules.tokenizer
        chat = self._rules.chat_tokens(parse(data, ChatBody)) if body.prompt is None else None
        tokens = tokenizer.encode(body.prompt or "") if chat is None else chat
        strings = [tokenizer.decode([token]) for token in tokens] if body.return_token_strs else None
        return _json(
            {"count": len(tokens), "max_model_len": self._rules.max_model_len, "tokens": tokens, "token_strs": strings}
        )

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = parse(await _json_body(request), _DetokenizeBody)
        self._rules.check_model(body.model)
        self._rules.check_tokens(body.tokens)
        return _json({"prompt": self._rules.tokenizer.decode(body.tokens)})

    async def _board(self, _: web.Request) -> web.Response:
        board = self._engine.machine.board.read(time.monotonic(), self._engine.scheduler.kv_used)
        return web.Response(body=msgspec.json.encode(board), content_type=_JSON)

    async def _books(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._engine.machine.transfer.report()), content_type=_JSON)

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._faults), content_type=_JSON)

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            self._faults.become(read(await request.read()))
        except FaultsError as error:
            raise invalid(str(error)) from error
        return await self._show_faults(request)


def _requests(reply: Reply, arrival: float) -> list[Request]:
    """One request per choice, with the engine's ids: `-i` for the prompt on `/v1/completions`, `k_` before it for the k-th of n."""
    generation = reply.generation
    requests: list[Request] = []
    for number, prompt in enumerate(generation.prompts):
        parent = reply.shape.engine_id(number)
        for child in range(generation.n):
            request = Request(
                request_id=parent if generation.n == 1 else f"{child}_{parent}",
                prompt=prompt,
                max_tokens=generation.max_tokens,
                min_tokens=generation.min_tokens,
                ignore_eos=generation.ignore_eos,
                seed=None if generation.seed is None else generation.seed + child,
                written=generation.on_output,
                kv_transfer_params=generation.kv_transfer_params,
                sink=reply.sink(len(requests)),
                arrival=arrival,
            )
            requests.append(request)
    return requests


async def _stream(request: web.Request, reply: EventReply, faults: Faults) -> web.StreamResponse:
    response = web.StreamResponse(headers=_SSE_HEADERS)
    try:
        await response.prepare(request)
        while events := await reply.events():
            await response.write(events)
            if faults.die_mid_stream and reply.completion_tokens:
                fault_injection.cut(request)
        if reply.torn:
            fault_injection.cut(request)
    except ConnectionResetError:
        pass  # the client left before a write; the caller aborts the request
    return response


async def _json_body(request: web.Request) -> bytes:
    if request.content_type != _JSON:
        msg = "Unsupported Media Type: Only 'application/json' is allowed"
        raise invalid(msg)
    return await request.read()


def _json(value: object) -> web.Response:
    return web.Response(body=dumps(value), content_type=_JSON)


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal in the shape of the API that was called, also the server's own."""
    try:
        return await handler(request)
    except ApiError as error:
        refusal = error
    except web.HTTPException as error:
        phrase = HTTPStatus(error.status).phrase
        refusal = ApiError(phrase, status=error.status, kind=phrase)
    body = messages.error_body(refusal) if request.path.startswith(messages.PATH) else refusal.body()
    return web.Response(status=refusal.status, body=body, content_type=_JSON)
