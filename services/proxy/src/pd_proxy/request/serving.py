"""Serves a request for tokens, whichever server has read it: `front`, or Hypercorn with `routes`."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final, Protocol, TypeVar, TypeVarTuple

from pd_contracts import sse, timing
from pd_contracts.names import REQUEST_ID_HEADER, TIMING_HEADER
from pd_proxy.context import Context
from pd_proxy.errors import ProxyError, ShuttingDownError, TooManyRequestsError, UnauthorizedError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import parse
from pd_proxy.request.retry import serve
from pd_proxy.request.trace import Trace
from pd_proxy.upstream.answers import Answer, Stream

T = TypeVar("T")
Given = TypeVarTuple("Given")

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream; charset=utf-8"
COUNTED: Final = (Endpoint.COMPLETIONS, Endpoint.CHAT, Endpoint.GENERATE)
MAX_CLIENT_ID: Final = 200
# A larger body takes milliseconds to parse, for which no stream should have to wait.
AT_ONCE_BYTES: Final = 256 * 1024
# Larger bodies are parsed one after the other: with each further thread, the event loop would wait longer for its turn.
_LARGE: Final = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")

_CLIENT_ID: Final = REQUEST_ID_HEADER.lower()
_TIMING: Final = TIMING_HEADER.lower()


class Headers(Protocol):
    """A request's headers."""

    def get(self, name: str, default: str, /) -> str:
        """A header by its name in lower case."""
        ...


def check_authorization(context: Context, path: str, headers: Headers) -> None:
    """If keys are configured, accept only clients with one of them. Anthropic's clients send theirs in a header of its own.

    Raises:
        UnauthorizedError: for other clients.
    """
    if not context.keys:
        return
    given = headers.get("authorization", "")
    if not given and is_anthropic(path) and (key := headers.get("x-api-key", "")):
        given = f"Bearer {key}"
    if not context.keys.allow(given):
        raise UnauthorizedError("this needs an API key as a bearer token")


def is_anthropic(path: str) -> bool:
    """Whether this path belongs to Anthropic's API."""
    return path.startswith(Endpoint.MESSAGES)


def error_of(path: str, error: ProxyError) -> bytes:
    """The body of an error in the form that this path's clients expect: OpenAI's or Anthropic's."""
    return error.body_of_message() if is_anthropic(path) else error.body()


def begin(context: Context, endpoint: Endpoint, headers: Headers) -> Trace:
    """Count a request that has arrived; `app.end` must follow."""
    context.metrics.started()
    client_id, timing_wanted = headers.get(_CLIENT_ID, ""), headers.get(_TIMING, "")
    return Trace(endpoint=endpoint, client_id=client_id[:MAX_CLIENT_ID], wants_timing=timing_wanted == "1")


async def answer(context: Context, trace: Trace, headers: Headers, body: bytes) -> Answer:
    """Have engines serve a request. A stream belongs to the trace: the end of the trace closes it.

    Raises:
        ProxyError: if it fails before the client could be sent a byte.
    """
    if context.refusing:
        raise ShuttingDownError("the proxy is shutting down")
    limit = context.settings.max_in_flight
    if limit and context.metrics.at_once() > limit:
        raise TooManyRequestsError(f"{limit} requests are already in flight (MAX_IN_FLIGHT)")
    generation = await parsed(len(body), parse, trace.endpoint, body, context.limits)
    trace.stream = generation.stream
    passed = {name: value for name in context.settings.passed_headers if (value := headers.get(name, ""))}
    found = await serve(context, generation, passed, trace)
    trace.first_byte = monotonic()
    trace.status = 200
    if isinstance(found, Stream):
        trace.answer = found
    return found


def delivered(trace: Trace) -> None:
    """The client has received the whole answer."""
    trace.complete = trace.over is not None and not trace.cause


async def parsed(size: int, parser: Callable[[*Given], T], *given: *Given) -> T:
    """What a parser makes of a body of this size in bytes; a large one does not hold up the event loop."""
    if size <= AT_ONCE_BYTES:
        return parser(*given)
    return await asyncio.get_running_loop().run_in_executor(_LARGE, parser, *given)


def response_headers(trace: Trace) -> dict[str, str]:
    """The client's own id, or the one in the answer; no header of an engine is passed on."""
    request_id = trace.client_id or trace.uuid
    return {REQUEST_ID_HEADER: request_id} if request_id else {}


def whole_headers(trace: Trace) -> dict[str, str]:
    """The headers of a non-streamed answer, which is complete when they are written."""
    trace.over = monotonic()
    headers = response_headers(trace)
    if trace.wants_timing:
        headers[TIMING_HEADER] = timing.encode(trace.stages(monotonic()))
    return headers


def stream_headers(trace: Trace) -> dict[str, str]:
    return {**response_headers(trace), "Cache-Control": "no-cache"}


def last_events(stream: Stream, trace: Trace) -> bytes:
    """The last bytes of a stream that has reached its end mark: the timing, if asked for, and the end mark."""
    trace.over = monotonic()
    trace.cause = "error_in_stream" if stream.failed else ""
    if trace.journey is not None and not stream.failed:
        trace.tokens = _tokens(stream, trace.endpoint)
    if trace.wants_timing:
        return sse.encode_comment(timing.PREFIX + timing.encode(trace.stages(monotonic()))) + stream.end
    return stream.end


def _tokens(stream: Stream, endpoint: str) -> int:
    """The number of tokens by the events of a stream: one per token, and one more for the role of a chat; unknown for typed events."""
    return max(0, stream.events - (endpoint == Endpoint.CHAT)) if endpoint in COUNTED else 0
