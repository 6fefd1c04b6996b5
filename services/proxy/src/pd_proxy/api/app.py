"""Wiring: the Quart application around one context."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Final, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, WebsocketScope
from msgspec import Struct
from quart import Blueprint, Quart, Request, Response, current_app, request
from quart.asgi import ASGIHTTPConnection
from werkzeug.exceptions import HTTPException

from pd_contracts import log
from pd_contracts.timing import Stages
from pd_proxy.api import cors
from pd_proxy.api.admin import Admin
from pd_proxy.api.afterwards import finish
from pd_proxy.api.delivery import Delivery
from pd_proxy.api.handed_over import connection_broken
from pd_proxy.api.membership import Membership
from pd_proxy.api.passthrough import Passthrough
from pd_proxy.api.routes import Generating, Showing
from pd_proxy.background.admission import Admission
from pd_proxy.background.canary import Canary
from pd_proxy.background.repay import Repayment
from pd_proxy.background.watchdog import Watchdog
from pd_proxy.context import Context
from pd_proxy.discovery.kubernetes import source_of
from pd_proxy.errors import AmbiguousLengthError, HttpError, ProxyError, SlowClientError
from pd_proxy.protocol import not_served
from pd_proxy.request.serving import JSON, delivered, error_of, response_headers
from pd_proxy.request.trace import Trace, attached
from pd_proxy.supervisor import Supervisor

# Clients put a base URL that ends with a slash before paths that begin with one. A whole URL, as forward proxies send it, has two of its own.
_SLASHES: Final = re.compile("(?<!:)/{2,}")

request_ended = log.Event("pd_proxy.requests", "request")


class Proxy(Quart):
    """A Quart application that knows its context."""

    def __init__(self, context: Context) -> None:
        super().__init__("pd_proxy", static_folder=None)
        self.context = context


class Connection(ASGIHTTPConnection):
    """Ends a request's trace when its response is over, however it ended.

    A client that leaves cancels the handler wherever it stands, even before Quart has begun to iterate a streamed body; only
    here is it certain that the engine's stream gets closed.
    """

    app: Proxy

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        """Take a request; a slash at the end of its path, or behind another one, is ignored."""
        super().__init__(app, {**scope, "path": _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"})

    async def handle_request(self, request: Request, send: ASGISendCallable) -> None:
        delivery = Delivery(send, self.app.context.settings.client_stall_timeout_s)
        try:
            await super().handle_request(request, delivery.send)
            if (trace := attached(request)) is not None and not connection_broken(self.scope):
                delivered(trace)
        except SlowClientError as error:
            if (trace := attached(request)) is not None:
                trace.fail(error)
        finally:
            finish(request)
            if (trace := attached(request)) is not None:
                end(self.app.context, trace)


class NoWebsocket:
    """Refuses every WebSocket with 403, as FastAPI does where there is none."""

    def __init__(self, app: Quart, scope: WebsocketScope) -> None: ...

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:  # noqa: ARG002
        """Answer the handshake."""
        await send({"type": "websocket.close", "code": 1000, "reason": None})


def end(context: Context, trace: Trace) -> None:
    """Release the engine, count the request, log one line."""
    trace.left()
    let_go(trace)
    context.metrics.ended(trace.endpoint, trace.status, trace.cause, fault=trace.server_fault)
    if trace.handed_off or trace.kept_back:
        context.metrics.first_token(handed_off=trace.handed_off, reason=trace.kept_back)
    stages = trace.stages(monotonic())
    trace.end_journey()
    if trace.complete:
        context.metrics.staged(stages)
    request_ended(summary(trace, stages))


def let_go(trace: Trace) -> None:
    """Release the engine: it has answered in full, or its answer is no longer needed."""
    stream, trace.answer = trace.answer, None
    if stream is not None and trace.over is not None:
        stream.settle()
    elif stream is not None:
        stream.close(failed=trace.server_fault)


class Summary(Struct):
    """The fields of a request's log line."""

    endpoint: str
    status: int
    cause: str
    retries: int
    first_token: str
    migrations: int
    stream: bool
    id: str
    client_id: str
    prefill: str
    decode: str
    queue_ms: float
    prefill_ms: float
    kv_and_first_decode_ms: float
    decode_ms: float


def summary(trace: Trace, stages: Stages) -> Summary:
    return Summary(
        endpoint=trace.endpoint,
        status=trace.status,
        cause=trace.cause,
        retries=trace.retries,
        first_token=stages.first_token or stages.first_token_reason,
        migrations=trace.migrations,
        stream=trace.stream,
        id=trace.uuid,
        client_id=_as_written(trace.client_id),
        prefill=stages.prefill_instance,
        decode=stages.decode_instance,
        queue_ms=stages.queue,
        prefill_ms=stages.prefill,
        kv_and_first_decode_ms=stages.kv_and_first_decode,
        decode_ms=stages.decode,
    )


def _as_written(header: str) -> str:
    """A header's value as its sender wrote it: HTTP reads bytes as Latin-1, and most senders write UTF-8."""
    return header if header.isascii() else header.encode("latin-1", "replace").decode("utf-8", "replace")


def whole_app(context: Supervisor) -> Proxy:
    """Everything that clients can call, in one process; it knows no engines until it is served within `running(context)`."""
    parts = (Generating(context), Showing(context), Admin(context), Membership(context), Passthrough(context))
    return app_of(context, *(part.blueprint() for part in parts))


def app_of(context: Context, *blueprints: Blueprint) -> Proxy:
    """An application of these routes."""
    app = Proxy(context)
    app.asgi_http_class = Connection
    app.asgi_websocket_class = NoWebsocket
    app.config["MAX_CONTENT_LENGTH"] = context.settings.max_body_bytes
    # A client that reads slowly gets its whole answer; `front` ends the connection of one that stopped reading.
    app.config["RESPONSE_TIMEOUT"] = None
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    app.before_request(refuse_two_lengths)
    if origins := context.settings.cors_origins:
        app.before_request(partial(answer_preflight, origins))
        app.after_request(partial(tell_browser, origins))
    app.after_request(partial(tell_last, context))
    app.register_error_handler(ProxyError, on_proxy_error)
    app.register_error_handler(HTTPException, on_http_exception)
    return app


async def refuse_two_lengths() -> None:
    """Refuse a request with two kinds of length, and end its connection: another server before this one may take it for two requests (RFC 9112, 6.1).

    Raises:
        AmbiguousLengthError: for such a request.
    """
    if "Transfer-Encoding" in request.headers and "Content-Length" in request.headers:
        raise AmbiguousLengthError("a request must have either Content-Length or Transfer-Encoding, not both")


async def tell_last(context: Context, response: Response) -> Response:
    """Tell a client that its connection ends with this answer, when the process is about to end. HTTP/2 has a message of its own for that."""
    if context.stopping and request.http_version.startswith("1"):
        response.headers["Connection"] = "close"
    return response


async def answer_preflight(origins: Sequence[str]) -> Response | None:
    """Answer what a browser asks before it sends a page's request and its key (a CORS preflight)."""
    if request.method != "OPTIONS":
        return None
    told = cors.preflight(origins, {name.lower(): text for name, text in request.headers.items()})
    return None if told is None else Response(b"", 204, headers=told)


async def tell_browser(origins: Sequence[str], response: Response) -> Response:
    """Let pages of these origins read the answer."""
    response.headers.update(cors.headers(origins, request.headers.get("Origin", "")))
    return response


async def on_proxy_error(error: ProxyError) -> Response:
    """The error in the form that the endpoint's clients expect."""
    trace = attached(request)
    headers = dict(error.headers)
    if trace is not None:
        trace.fail(error)
        headers |= response_headers(trace)
    elif isinstance(error, HttpError | AmbiguousLengthError):
        cast("Proxy", current_app).context.refused.noted(error.status, error.message)
    return Response(error_of(request.path, error), error.status, content_type=JSON, headers=headers)


async def on_http_exception(error: HTTPException) -> Response:
    """Likewise for what the HTTP layer refuses, and for unexpected exceptions (500, logged by Quart)."""
    status = error.code or 500
    known = not_served.reason(request.path) if status == HTTPStatus.NOT_FOUND else ""
    response = await on_proxy_error(HttpError(status, known or error.description or error.name))
    if isinstance(methods := getattr(error, "valid_methods", None), list):
        response.headers["Allow"] = ", ".join(methods)
    return response


@asynccontextmanager
async def running(context: Supervisor) -> AsyncIterator[None]:
    """Discover engines, check and watch them. At the end, background work finishes first, so that no KV is left behind.

    Raises:
        OSError: if the port for pings cannot be opened, or the pod's account cannot be read.
    """
    discovery = source_of(context.settings, context.ping, context.metrics.ping_rejected, context.goes_on)
    try:
        discovery.bind()
        async with context.upstream:
            loops = [discovery.run(), Admission(context).run(), Watchdog(context).run(), Repayment(context).run()]
            if context.settings.canary:
                loops.append(Canary(context).run())
            tasks = [context.guard(asyncio.create_task(loop)) for loop in loops]
            try:
                yield
                await context.tasks.finish(context.settings.drain_timeout_s)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        discovery.close()
