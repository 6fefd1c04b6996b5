"""How a greenlet waits without keeping the loop from its sockets.

`gevent.sleep(0)` does not do that: what it schedules runs before the loop looks at its sockets again, for up to 5 ms. An idle watcher
makes the loop look without blocking, and its priority says who goes first.
"""

from typing import Final

from gevent.hub import get_hub

_BEFORE_SOCKETS: Final = 2
_AFTER_SOCKETS: Final = -2


def after_a_look() -> None:
    """Return once the loop has looked at its sockets, before it serves them: for what must not be late."""
    _turn(_BEFORE_SOCKETS)


def when_idle() -> None:
    """Return once no socket is waiting to be served: for work that can wait."""
    _turn(_AFTER_SOCKETS)


def _turn(priority: int) -> None:
    hub = get_hub()
    watcher = hub.loop.idle(priority=priority)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
