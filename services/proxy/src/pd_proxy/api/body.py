"""Reads a request's body from Quart."""

import asyncio

from quart import Request

from pd_proxy.context import Context
from pd_proxy.errors import HttpError


async def body_of(request: Request, context: Context) -> bytes:
    """The whole body, however slowly it arrives.

    Raises:
        HttpError: 408 if nothing arrived for UPLOAD_IDLE_TIMEOUT_S, 413 if it is larger than MAX_BODY_BYTES.
        UploadsFullError: if it has to make room for other bodies.
    """
    limit, idle_s = context.settings.max_body_bytes, context.settings.upload_idle_timeout_s
    body, loop = bytearray(), asyncio.get_running_loop()
    deadline = asyncio.timeout(idle_s)
    upload = context.uploads.begin(lambda _: deadline.reschedule(loop.time()))
    try:
        async with deadline:
            async for data in request.body:
                body += data
                if len(body) > limit:
                    raise HttpError(413, f"the request body is larger than MAX_BODY_BYTES ({limit} bytes)")
                deadline.reschedule(loop.time() + idle_s)
                upload.holds(len(body))
    except TimeoutError:
        raise upload.refused or HttpError(408, f"no part of the request body arrived for {idle_s:g} s") from None
    finally:
        upload.end()
    return bytes(body)
