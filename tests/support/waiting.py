"""Waits for conditions without an event, by polling."""

import contextlib
import time
from collections.abc import Callable

PERIOD_S = 0.02


def until(
    condition: Callable[[], object],
    seconds: float = 30.0,
    what: str = "",
    *,
    period_s: float = PERIOD_S,
    while_: Callable[[], object] = lambda: True,
    ignoring: tuple[type[Exception], ...] = (),
) -> None:
    """Poll until the condition holds; errors of `ignoring` count as "not yet".

    Raises:
        AssertionError: if it does not within so many seconds, or as soon as `while_` no longer holds.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(*ignoring):
            if condition():
                return
        assert while_(), f"ended before {what or condition} came true"
        assert time.monotonic() < deadline, f"{what or condition} did not come true within {seconds:g} s"
        time.sleep(period_s)
