"""HTTP towards engines: requests for tokens over connections of our own, the rest through aiohttp's session, and one way to turn
what goes wrong into an error with a name.

Messages call engines by name. What aiohttp says stays out of them, because it says addresses.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import aiohttp

from pd_proxy import rewrite
from pd_proxy.connections import KEEP_ALIVE_S, ConnectTimedOutError, NotConnectedError, Pool, Reply
from pd_proxy.errors import ConnectTimeoutError, DisconnectedError, RefusedError, UnreachableError, UpstreamError
from pd_proxy.flights import Flight
from pd_proxy.registry import Instance
from pd_proxy.transfer import Leg

logger = logging.getLogger(__name__)

MAX_DOCUMENT_BYTES: Final = 1024 * 1024


class Upstream:
    """The client session; use as an async context manager."""

    def __init__(self, connect_timeout_s: float) -> None:
        """Nothing is opened yet."""
        self._connect_timeout_s = connect_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._pool = Pool(connect_timeout_s)

    async def __aenter__(self) -> Self:
        """Open the session; it has no limit of its own on connections, because each stream needs one."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "pd-proxy"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        self._pool.close()
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        if self._session is None:
            msg = "the session is opened by `async with`"
            raise RuntimeError(msg)
        return self._session

    async def post(self, flight: Flight, path: str, leg: Leg) -> Reply:
        """Send a request and return its 200 with the body still to come; the flight closes it.

        Raises:
            RefusedError: if the engine answers with another status.
            UpstreamError: if it does not answer, or the flight is aborted.
        """
        async with translated(flight), asyncio.timeout(None) as deadline:
            flight.opening(deadline)
            reply = await self._pool.post(flight.instance.http_address, path, leg.headers, leg.body)
        flight.attach(reply)
        if reply.status != 200:
            raise await _refusal(flight, reply)
        return reply

    async def call(self, instance: Instance, path: str, body: bytes, timeout_s: float) -> bytes:
        """POST what makes no tokens, and read the body of its 200.

        Raises:
            UpstreamError: if it does not answer 200 in time; a 4xx with what the engine said.
        """
        url, name = f"http://{instance.http_address}{path}", instance.name
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                answer = await response.read()
        except TimeoutError:
            raise ConnectTimeoutError(f"{name} does not answer") from None
        except aiohttp.ClientConnectorError:
            raise UnreachableError(f"{name} refuses connections") from None
        except (aiohttp.ClientError, ValueError):
            raise DisconnectedError(f"{name} closed the connection before its answer was complete") from None
        if response.status != 200:
            raise refusal(instance, response.status, answer)
        return answer

    async def get(self, instance: Instance, path: str, timeout_s: float) -> bytes:
        """GET a small document.

        Raises:
            UpstreamError: if it does not answer 200 in time.
        """
        url = f"http://{instance.http_address}{path}"
        try:
            async with asyncio.timeout(timeout_s), self.session.get(url, allow_redirects=False) as response:
                body = await _read_document(response)
        except TimeoutError:
            raise ConnectTimeoutError(f"{path} does not answer") from None
        except aiohttp.ClientConnectorError:
            raise UnreachableError(f"{path} refuses the connection") from None
        except (aiohttp.ClientError, ValueError) as error:
            # ValueError: a host name that anybody may have pinged, such as "a..b", fails in the IDNA codec
            raise DisconnectedError(f"{path} breaks off ({type(error).__name__})") from None
        if response.status != 200:
            raise RefusedError(response.status, f"{path} answers {response.status}")
        return body


async def _read_document(response: aiohttp.ClientResponse) -> bytes:
    """Read a body that may come from anybody who pinged, so only up to a size.

    Raises:
        ValueError: if it is larger.
    """
    body = b""
    async for data in response.content.iter_any():
        body += data
        if len(body) > MAX_DOCUMENT_BYTES:
            msg = "the document is too large"
            raise ValueError(msg)
    return body


@asynccontextmanager
async def translated(flight: Flight) -> AsyncIterator[None]:
    """Turn a connection's exceptions into ours; the reason of an aborted flight wins over its symptom."""
    name = flight.instance.name
    try:
        yield
    except ConnectTimedOutError:
        raise flight.failure or ConnectTimeoutError(f"{name} did not take the connection in time") from None
    except NotConnectedError:
        raise flight.failure or UnreachableError(f"{name} refuses connections") from None
    except (TimeoutError, ConnectionError) as error:
        logger.debug("engine broke off", extra={"instance": name, "error": repr(error)})
        raise flight.failure or DisconnectedError(
            f"{name} closed the connection before its answer was complete"
        ) from None


async def _refusal(flight: Flight, reply: Reply) -> UpstreamError:
    async with translated(flight):
        body = await reply.read()
    return refusal(flight.instance, reply.status, body)


def refusal(instance: Instance, status: int, body: bytes) -> RefusedError:
    """Free an error answer of addresses, and make of it what the client gets."""
    text = rewrite.scrub(body.decode(errors="replace"), (instance.http_address, instance.zmq_address))
    fields = rewrite.error_fields(text.encode())
    message = str(fields.get("message", ""))
    logger.warning(
        "engine refused a request",
        extra={"instance": instance.name, "status": status, "detail": message[:500]},
    )
    if 400 <= status < 500:
        return RefusedError(status, message or f"{instance.name} answered {status}", fields=fields)
    return RefusedError(status, f"{instance.name} answered {status}")
