"""The faults of the HTTP side, between the server and the handlers. `/sim/*` always works, so that faults can be ended."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from pd_simulator.errors import ApiError
from pd_simulator.faults import Faults

_LOOK_S = 0.02

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middleware(faults: Faults) -> Middleware:
    """Let requests through as far as the faults allow."""

    @web.middleware
    async def inject(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/sim/"):
            return await handler(request)
        if faults.refuse:
            cut(request)
            return web.Response()
        while faults.hang:  # noqa: ASYNC110  # switches have no event to wait on
            await asyncio.sleep(_LOOK_S)
        if request.method == "POST" and request.path.startswith(("/v1/", "/inference/")):
            await _fail(faults, request)
        return await handler(request)

    return inject


async def _fail(faults: Faults, request: web.Request) -> None:
    if faults.status is not None:
        raise ApiError("this engine fails on purpose", status=faults.status, kind="InternalServerError")
    if faults.swallow:
        await request.read()
        await asyncio.get_running_loop().create_future()  # until the client leaves


def cut(request: web.Request) -> None:
    """Reset the request's connection."""
    if request.transport is not None:
        request.transport.abort()
