"""HTTP to engines: requests for tokens over the proxy's own connections, all others through aiohttp.

Messages name engines. They do not quote aiohttp's messages, because these hold addresses.
"""

import asyncio
from functools import partial
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import AnswerTooLargeError, BrokenReplyError, DisconnectedError, ProxyError, RefusedError
from pd_proxy.kv.transfer import Leg
from pd_proxy.protocol.rewrite import BLOCK_END, ForwardedRewriter, raise_error
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.access import OPEN, EngineAccess
from pd_proxy.upstream.connections import KEEP_ALIVE_S, Connection, Pool
from pd_proxy.upstream.documents import PassedOn, check_json, is_json, is_stream, noting_use, post, read_document
from pd_proxy.upstream.failures import refusal, translated, translating
from pd_proxy.upstream.flights import Flight
from pd_proxy.upstream.replies import BrokenOffError, Reply, TooLargeError

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
# The longest error message that is searched for addresses: an engine may repeat the whole request in it.
MAX_ERROR_BYTES: Final = 1024 * 1024


class Upstream:
    """The client session; use as an async context manager."""

    def __init__(
        self, connect_timeout_s: float, max_answer_bytes: int, shortage: Shortage, access: EngineAccess = OPEN
    ) -> None:
        """Opens nothing yet. `max_answer_bytes` limits non-streamed answers, `access` is what engines require."""
        self._shortage = shortage
        self._max_answer_bytes = max_answer_bytes
        self._connect_timeout_s = connect_timeout_s
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        self._pool = Pool(connect_timeout_s, shortage, access)

    async def __aenter__(self) -> Self:
        """Open the session. It does not limit connections, because each stream needs one."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=True if self._access.tls is None else self._access.tls
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
            trace_configs=[noting_use()],
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "pd-proxy", **self._access.headers},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        if self._session is not None:
            await self._session.close()

    @property
    def connections(self) -> int:
        """The number of connections to engines for requests for tokens."""
        return self._pool.size

    def limit_connections(self, most: int) -> None:
        """From this number of connections on, none is kept idle: other parts of the process need descriptors, too."""
        self._pool.most = most

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            msg = "use `async with` to open the session"
            raise RuntimeError(msg)
        return self._session

    async def post(self, flight: Flight, path: str, leg: Leg) -> Reply:
        """Send a request; returns its 200, whose body is still to be read. The flight closes it.

        Raises:
            RefusedError: if the engine answers with another status.
            UpstreamError: if it does not answer, or the flight is aborted.
        """
        try:
            connection = self._pool.take(flight.instance.http_address) or await self._connection(flight)
            answered = connection.request(path, leg.headers, leg.body)
            give_up = partial(connection.give_up, answered)
            flight.opening(give_up)
            try:
                reply = await answered
            except asyncio.CancelledError:
                give_up()
                raise
        except (TimeoutError, ConnectionError) as error:
            raise translated(flight, error) from None
        flight.attach(reply)
        if reply.status != 200:
            raise await _refusal(flight, reply)
        return reply

    async def read(self, flight: Flight, reply: Reply) -> bytes:
        """The whole body of an answer.

        Raises:
            AnswerTooLargeError: if it is larger than MAX_ANSWER_BYTES.
            UpstreamError: if it is cut off, or the flight is aborted.
        """
        try:
            return await reply.read(self._max_answer_bytes)
        except TooLargeError:
            raise self._too_large(flight.instance) from None
        except BrokenOffError as error:
            raise translated(flight, error) from None

    def _too_large(self, instance: Instance) -> AnswerTooLargeError:
        return AnswerTooLargeError(
            f"{instance.name}'s answer is larger than MAX_ANSWER_BYTES ({self._max_answer_bytes} bytes); stream it, or ask for less"
        )

    async def _connection(self, flight: Flight) -> Connection:
        async with asyncio.timeout(None) as deadline:
            flight.opening(lambda: deadline.reschedule(flight.loop.time()))
            return await self._pool.connect(flight.instance.http_address)

    async def call(self, instance: Instance, path: str, body: bytes, timeout_s: float) -> bytes:
        """POST a request that is not for tokens; returns the body of its 200.

        Raises:
            UpstreamError: if it does not answer 200 in time; for a 4xx, with the engine's message.
        """
        url, name = self._access.url(instance.http_address, path), instance.name
        headers = {"Content-Type": "application/json"}
        with translating(name, f"{name} refuses connections", lambda _: DisconnectedError.by(name), self._shortage):
            async with (
                asyncio.timeout(timeout_s),
                await post(self.session, url, data=body, headers=headers) as response,
            ):
                answer = await read_document(response, self._max_answer_bytes)
        if answer is None:
            raise self._too_large(instance)
        if response.status != 200:
            raise refusal(instance, response.status, answer, response.headers.get("Retry-After", ""))
        _raise_error(instance, answer)
        return answer

    async def forward(self, instance: Instance, path: str, body: bytes, kind: str, timeout_s: float) -> PassedOn:
        """POST a body of any kind; returns the answer. A stream is still to be read within `timeout_s`.

        Raises:
            UpstreamError: if there is no answer, or it cannot be passed on; a RefusedError for a status other than 200.
        """
        url, name = self._access.url(instance.http_address, path), instance.name
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        with translating(name, f"{name} refuses connections", lambda _: DisconnectedError.by(name), self._shortage):
            response = await post(self.session, url, data=body, headers={"Content-Type": kind}, timeout=timeout)
            rewriter = ForwardedRewriter((instance.http_address, instance.zmq_address))
            try:
                first = await self._beginning(instance, response, rewriter)
            except BaseException:
                response.close()
                raise
        return PassedOn(response, first, name, self._shortage, rewriter)

    async def _beginning(
        self, instance: Instance, response: aiohttp.ClientResponse, rewriter: ForwardedRewriter
    ) -> bytes:
        """The first events of a stream, and all of any other answer: until then an error can have a status."""
        if response.status != 200:
            body = await read_document(response, MAX_ERROR_BYTES) or b""
            raise refusal(instance, response.status, body, response.headers.get("Retry-After", ""))
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise BrokenReplyError(f"{instance.name} answered in an encoding that it was not asked for")
        if is_stream(response):
            return await _first_events(instance, response, rewriter)
        answer = await read_document(response, self._max_answer_bytes)
        if answer is None:
            raise self._too_large(instance)
        if not answer.strip():
            raise BrokenReplyError(f"{instance.name}'s answer is empty")
        if is_json(response):
            check_json(answer, instance.name)
        _raise_error(instance, answer)
        return answer

    async def get(self, instance: Instance, path: str, timeout_s: float) -> bytes:
        """GET a small document.

        Raises:
            UpstreamError: if it does not answer 200 in time.
        """
        url = self._access.url(instance.http_address, path)
        with translating(
            path,
            f"{path} refuses the connection",
            lambda error: DisconnectedError(
                f"{path}: the connection broke ({type(error).__name__}){self._access.hint(error)}"
            ),
            self._shortage,
        ):
            async with asyncio.timeout(timeout_s), self.session.get(url, allow_redirects=False) as response:
                body = await read_document(response, MAX_DOCUMENT_BYTES)
        if body is None:
            raise BrokenReplyError(f"{path} answers with more than {MAX_DOCUMENT_BYTES} bytes")
        if response.status != 200:
            why = ": the engine does not accept ENGINE_API_KEY" if response.status == 401 else ""
            raise RefusedError(response.status, f"{path} answers {response.status}{why}")
        return body


async def _first_events(instance: Instance, response: aiohttp.ClientResponse, rewriter: ForwardedRewriter) -> bytes:
    while data := await response.content.readany():
        if first := rewriter.feed(data):
            rewriter.check_first(first)
            return first
    if not rewriter.incomplete:
        raise BrokenReplyError(f"{instance.name}'s answer is empty")
    return rewriter.feed(BLOCK_END)


def _raise_error(instance: Instance, answer: bytes) -> None:
    """Raise the error that an engine answered with a 200, in JSON; any other answer is the client's."""
    try:
        raise_error(answer, (instance.http_address, instance.zmq_address))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return


async def _refusal(flight: Flight, reply: Reply) -> ProxyError:
    try:
        body = await reply.read(MAX_ERROR_BYTES)
    except TooLargeError:
        body = b""  # the status is enough for a message
    except BrokenOffError as error:
        return translated(flight, error)
    return refusal(flight.instance, reply.status, body, reply.retry_after)
