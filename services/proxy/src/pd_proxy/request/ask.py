"""Sends one request to one engine, and reports an engine that refuses connections: it gets none until its next good health check."""

from pd_proxy.context import Context
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import UnreachableError
from pd_proxy.kv.transfer import Leg
from pd_proxy.protocol.rewrite import StreamRewriter
from pd_proxy.upstream.answers import Stream, accepted, fetch, open_stream
from pd_proxy.upstream.flights import Flight
from pd_proxy.upstream.replies import Reply


async def ask(
    context: Context, engine: Instance, path: str, leg: Leg, *, whole: bool = False, flight: Flight | None = None
) -> bytes:
    """Send an engine one request and return the body of its 200; `whole` as in `Flight`.

    Raises:
        UpstreamError: for anything else.
    """
    flight = flight or context.flights.open(engine, whole=whole)
    try:
        return await fetch(context.upstream, flight, path, leg)
    except UnreachableError as error:
        context.unreachable(engine, error.message)
        raise


async def ask_for_stream(context: Context, path: str, leg: Leg, rewriter: StreamRewriter, flight: Flight) -> Stream:
    """Send an engine one request and wait for the first events of its answer.

    Raises:
        UpstreamError: if no event comes, or the first one is an error.
    """
    try:
        return await open_stream(context.upstream, flight, path, leg, rewriter)
    except UnreachableError as error:
        context.unreachable(flight.instance, error.message)
        raise


async def ask_ahead(context: Context, path: str, leg: Leg, flight: Flight) -> Reply:
    """Send an engine one request and wait until it has accepted it.

    Raises:
        UpstreamError: if the engine does not accept it.
    """
    try:
        return await accepted(context.upstream, flight, path, leg)
    except UnreachableError as error:
        context.unreachable(flight.instance, error.message)
        raise
