"""Reads a request's body from Quart."""

import asyncio

from quart import Request

from pd_proxy.errors import HttpError
from pd_proxy.settings import Settings


async def body_of(request: Request, settings: Settings) -> bytes:
    """The whole body, however slowly it arrives.

    Raises:
        HttpError: 408 if nothing arrived for UPLOAD_IDLE_TIMEOUT_S, 413 if it is larger than MAX_BODY_BYTES.
    """
    limit, idle_s = settings.max_body_bytes, settings.upload_idle_timeout_s
    body, loop = bytearray(), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle_s) as deadline:
            async for data in request.body:
                body += data
                if len(body) > limit:
                    raise HttpError(413, f"the request body is larger than MAX_BODY_BYTES ({limit} bytes)")
                deadline.reschedule(loop.time() + idle_s)
    except TimeoutError:
        raise HttpError(408, f"no part of the request body arrived for {idle_s:g} s") from None
    return bytes(body)
