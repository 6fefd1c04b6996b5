"""Plain blocking HTTP of the standard library; under Locust, gevent makes it cooperative."""

from typing import Final

from pd_contracts.http_call import Reply, call
from pd_loadgen.client.access import Access

POLL_S: Final = 0.25
REQUEST_TIMEOUT_S: Final = 5.0
# Requests to the monitor have no headers, and trust the system's certificates.
OPEN: Final = Access()


class ServerError(OSError):
    """The server or the monitor cannot be used; the message is one sentence."""


def ask(
    url: str,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    *,
    access: Access = OPEN,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Reply:
    """One request and its whole answer.

    Raises:
        CallError: if there is none.
    """
    return call(at(url, path), method, body, access.headers, timeout_s=timeout_s, context=access.context)


def at(url: str, path: str) -> str:
    return url.rstrip("/") + path
