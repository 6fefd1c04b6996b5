"""Waits, in asyncio, for conditions without an event, by polling."""

import asyncio
from collections.abc import Callable

from support.waiting import PERIOD_S


async def until(condition: Callable[[], object], seconds: float = 30.0, *, period_s: float = PERIOD_S) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: if it does not within so many seconds.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(period_s)
