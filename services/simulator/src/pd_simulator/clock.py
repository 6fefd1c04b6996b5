"""Waiting for absolute deadlines, so that steps do not drift."""

import asyncio
import time

# Timers of the event loop count whole milliseconds. A wait that ends this little early is as good as one that ends late, and
# deadlines are absolute, so neither adds up.
_NEAR_S = 0.00025


async def sleep_until(deadline: float) -> None:
    """Return at the monotonic time `deadline`, give or take a quarter of a millisecond, and let others run at least once."""
    while (left := deadline - time.monotonic()) > _NEAR_S:  # noqa: ASYNC110 - time is what is waited for
        await asyncio.sleep(left)
    await asyncio.sleep(0)
