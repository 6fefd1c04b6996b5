"""Work for the end of a response, however it ends: if the client has left, Quart may never begin to iterate the body."""

from collections.abc import Callable
from typing import Any, Final, cast

from quart import Request

_KEY: Final = "pd_proxy.afterwards"


def afterwards(request: Request, work: Callable[[], None]) -> None:
    """Have this done when the response to a request is over."""
    _works(request).append(work)


def finish(request: Request) -> None:
    """The response is over."""
    for work in _works(request):
        work()


def _works(request: Request) -> list[Callable[[], None]]:
    found: list[Callable[[], None]] = cast("dict[str, Any]", request.scope).setdefault(_KEY, [])
    return found
