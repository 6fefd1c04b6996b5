"""Short HTTP calls with the standard library: one connection each, no redirects, past any proxy of the environment.

For occasional requests: readiness, statistics, recordings. Measured streams and relayed tokens have their own clients.
"""

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

TIMEOUT_S: Final = 5.0
_NO_HEADERS: Final[Mapping[str, str]] = {}


class CallError(OSError):
    """No answer came; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer, whatever its status. `elapsed_s` is from send to last byte; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            CallError: if it is not JSON.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            msg = f"status {self.status} with a body that is not JSON: {self.body[:80]!r}"
            raise CallError(msg) from error


def call(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
    *,
    timeout_s: float = TIMEOUT_S,
    connect_timeout_s: float | None = None,
    context: ssl.SSLContext | None = None,
) -> Reply:
    """Ask and read the whole answer.

    Args:
        timeout_s: for each wait on the socket; `connect_timeout_s` if the connection must be made sooner.
        context: whose certificates are trusted; None trusts the system's authorities.

    Raises:
        CallError: if no whole answer came.
    """
    begin = time.monotonic()
    with answering(
        url, method, body, headers, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, context=context
    ) as answer:
        data = answer.read()
        return Reply(
            status=answer.status,
            headers={key.lower(): value for key, value in answer.getheaders()},
            body=data,
            elapsed_s=time.monotonic() - begin,
        )


@contextmanager
def answering(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
    *,
    timeout_s: float = TIMEOUT_S,
    connect_timeout_s: float | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """Ask, and give the answer before its body is read; errors while it is read within the block are CallErrors too."""
    try:
        connection, target = _connection(url, connect_timeout_s or timeout_s, context)
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            kind = {"Content-Type": "application/json"} if body else {}
            connection.request(method, target, body, {"Connection": "close", **kind, **headers})
            yield connection.getresponse()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CallError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """An error of a socket, of TLS or of HTTP in a few words."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {getattr(error, 'verify_message', '') or error.reason}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _connection(url: str, timeout_s: float, context: ssl.SSLContext | None) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    host, target = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context), target
    return http.client.HTTPConnection(host, parts.port, timeout=timeout_s), target
