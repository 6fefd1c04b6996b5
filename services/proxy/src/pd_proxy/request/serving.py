"""What serving a request for tokens means, whichever server has read it: `routes` under Hypercorn or `front` beside it."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from pd_contracts import sse, timing
from pd_contracts.names import REQUEST_ID_HEADER, TIMING_HEADER
from pd_proxy.context import Context
from pd_proxy.errors import ProxyError, ShuttingDownError, TooManyRequestsError, UnauthorizedError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import Generation, parse
from pd_proxy.request.retry import serve
from pd_proxy.request.trace import Trace
from pd_proxy.upstream.answers import Answer, Stream

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream; charset=utf-8"
COUNTED: Final = (Endpoint.COMPLETIONS, Endpoint.CHAT, Endpoint.GENERATE)
MAX_CLIENT_ID: Final = 200
# What is larger takes milliseconds to read, in which no stream should have to wait.
AT_ONCE_BYTES: Final = 256 * 1024

# A request's header by its name in lower case; empty if there is none.
Header = Callable[[str], str]

_CLIENT_ID: Final = REQUEST_ID_HEADER.lower()
_TIMING: Final = TIMING_HEADER.lower()


def check_authorization(context: Context, path: str, header: Header) -> None:
    """Let only clients with a key through, if there are keys. Anthropic's clients send theirs in a header of its own.

    Raises:
        UnauthorizedError: for the others.
    """
    if not context.keys:
        return
    given = header("authorization")
    if not given and is_anthropic(path) and (key := header("x-api-key")):
        given = f"Bearer {key}"
    if not context.keys.allow(given):
        raise UnauthorizedError("this needs an API key as a bearer token")


def is_anthropic(path: str) -> bool:
    """Whether clients of this path speak Anthropic's API."""
    return path.startswith(Endpoint.MESSAGES)


def error_of(path: str, error: ProxyError) -> bytes:
    """The body of an error as the clients of this path expect it: OpenAI's, or Anthropic's."""
    return error.body_of_message() if is_anthropic(path) else error.body()


def begin(context: Context, path: str, header: Header) -> Trace:
    """Count a request that has arrived; `app.end` must follow."""
    context.metrics.started()
    return Trace(endpoint=path, client_id=header(_CLIENT_ID)[:MAX_CLIENT_ID], wants_timing=header(_TIMING) == "1")


async def answer(context: Context, trace: Trace, header: Header, body: bytes) -> Answer:
    """Have engines serve a request; a stream belongs to the trace, whose end closes it.

    Raises:
        ProxyError: if it fails before the client could be sent a byte.
    """
    if context.stopping:
        raise ShuttingDownError("the proxy is shutting down")
    limit = context.settings.max_in_flight
    if limit and context.metrics.at_once() > limit:
        raise TooManyRequestsError(f"{limit} requests are in flight already")
    generation = await _parsed(context, Endpoint(trace.endpoint), body)
    trace.stream = generation.stream
    headers = {name: value for name in context.settings.passed_headers if (value := header(name))}
    found = await serve(context, generation, headers, trace)
    trace.first_byte = monotonic()
    trace.status = 200
    if isinstance(found, Stream):
        trace.answer = found
    return found


def delivered(trace: Trace) -> None:
    """The client has taken the whole answer."""
    trace.complete = trace.over is not None and not trace.cause


async def _parsed(context: Context, endpoint: Endpoint, body: bytes) -> Generation:
    if len(body) <= AT_ONCE_BYTES:
        return parse(endpoint, body, context.limits)
    return await asyncio.to_thread(parse, endpoint, body, context.limits)


def response_headers(trace: Trace) -> dict[str, str]:
    """The client's own id, or the one in the answer; no header of an engine is passed on."""
    request_id = trace.client_id or trace.uuid
    return {REQUEST_ID_HEADER: request_id} if request_id else {}


def whole_headers(trace: Trace) -> dict[str, str]:
    """Headers of an answer in one piece, which is over when they are written."""
    trace.over = monotonic()
    headers = response_headers(trace)
    if trace.wants_timing:
        headers[TIMING_HEADER] = timing.encode(trace.stages(monotonic()))
    return headers


def stream_headers(trace: Trace) -> dict[str, str]:
    return {**response_headers(trace), "Cache-Control": "no-cache"}


def last_events(stream: Stream, trace: Trace) -> bytes:
    """What ends a stream that came to its end mark."""
    trace.over = monotonic()
    trace.cause = "error_in_stream" if stream.failed else ""
    if trace.journey is not None and not stream.failed:
        trace.tokens = _tokens(stream, trace.endpoint)
    if trace.wants_timing:
        return sse.encode_comment(timing.PREFIX + timing.encode(trace.stages(monotonic()))) + stream.end
    return stream.end


def _tokens(stream: Stream, endpoint: str) -> int:
    """As engines write them: one event per token, and one more for the role in chat; unknown for typed events."""
    return max(0, stream.events - (endpoint == Endpoint.CHAT)) if endpoint in COUNTED else 0
