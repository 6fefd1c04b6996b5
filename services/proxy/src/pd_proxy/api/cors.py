"""The headers with which a browser lets pages of other origins call the proxy (CORS_ORIGINS). Pure.

A browser asks before it sends a key, so its question (the preflight) has no key, and is answered without one.
"""

from collections.abc import Mapping, Sequence
from typing import Final

ANY: Final = "*"
METHODS: Final = "GET, POST, DELETE, OPTIONS"
# In addition to the headers that every page may read.
EXPOSED: Final = "X-Request-Id, X-PD-Timing, Retry-After"
MAX_AGE_S: Final = 600


def allows(origins: Sequence[str], origin: str) -> bool:
    """Whether pages of this origin may call the proxy; if `origins` is empty, none may."""
    return bool(origin) and (ANY in origins or origin in origins)


def headers(origins: Sequence[str], origin: str) -> dict[str, str]:
    """The headers that are added to every answer; none if no origin is allowed."""
    if not origins:
        return {}
    # The answer differs by origin, and caches must know that.
    vary = {} if ANY in origins else {"Vary": "Origin"}
    if not allows(origins, origin):
        return vary
    return {
        "Access-Control-Allow-Origin": ANY if ANY in origins else origin,
        "Access-Control-Expose-Headers": EXPOSED,
        **vary,
    }


def unread(origins: Sequence[str]) -> dict[str, str]:
    """The headers of an answer to a request that was refused before its head was read. Where one origin is allowed, that is the one."""
    return headers(origins, origins[0] if len(origins) == 1 or ANY in origins else "")


def preflight(origins: Sequence[str], asked: Mapping[str, str]) -> dict[str, str] | None:
    """The headers of the answer to a preflight; None if the request is not one, or its origin is not allowed. Names in `asked` are in lower case."""
    origin = asked.get("origin", "")
    if not asked.get("access-control-request-method") or not allows(origins, origin):
        return None
    wanted = asked.get("access-control-request-headers")
    return {
        **headers(origins, origin),
        "Access-Control-Allow-Methods": METHODS,
        **({"Access-Control-Allow-Headers": wanted} if wanted else {}),
        "Access-Control-Max-Age": str(MAX_AGE_S),
    }
