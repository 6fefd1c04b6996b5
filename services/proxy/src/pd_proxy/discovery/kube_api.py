"""A client of Kubernetes' API for use in a pod: lists one kind of object in one namespace, then watches it.

The kubelet replaces the files of the account's token and of the authority's certificate, so they are read again for every request;
a request lasts a minute at most. While the API server is unreachable, its last answer stays valid: engines do not vanish with it.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import aiohttp
import msgspec

from pd_proxy.discovery.slices import Metadata

logger = logging.getLogger(__name__)

# The server ends a watch after this time; if it has not done so a little later, the connection is dead.
WATCH_S: Final = 60
LIST_TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
# The pause between successful requests: a server that ends each at once is not asked in a tight loop.
BREATH_S: Final = 0.1
MAX_EVENT_BYTES: Final = 8 << 20


class Object(Protocol):
    """Any object with metadata."""

    @property
    def metadata(self) -> Metadata:
        """Name, UID and resource version."""


T = TypeVar("T", bound=Object)


class ApiError(Exception):
    """The API server did not answer as asked; the message is the reason."""


class GoneError(ApiError):
    """The version at which a watch should begin is too old: list again."""


class _Version(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Bookmark(msgspec.Struct):
    metadata: _Version


class _List(msgspec.Struct):
    metadata: _Version
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class Api:
    """A client with the account of this pod."""

    def __init__(self, url: str, account: Path) -> None:
        """`account` is the folder with `token`, `ca.crt` and `namespace`."""
        self._url = url
        self._account = account

    def check(self) -> str:
        """The pod's own namespace.

        Raises:
            OSError: if the process does not run in a pod with a service account's token.
        """
        self._token()
        self._trust()
        return (self._account / "namespace").read_text().strip()

    async def lines(
        self, path: str, parameters: dict[str, str], timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[bytes, None]:
        """Send a GET; yields the answer's lines as they arrive.

        Raises:
            GoneError: for status 410.
            ApiError: for any other status than 200, a failed connection, or a line that is too long.
        """
        try:
            headers = {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}
            connector = aiohttp.TCPConnector(ssl=self._trust())
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(self._url + path, params=parameters, headers=headers) as response,
            ):
                if response.status != 200:
                    text = (await response.content.read(500)).decode(errors="replace")
                    raise (GoneError if response.status == 410 else ApiError)(f"status {response.status}: {text}")
                async for line in _lines(response.content):
                    yield line
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError and TLS errors are OSErrors
            raise ApiError(f"{type(error).__name__}: {error}") from error

    def _token(self) -> str:
        return (self._account / "token").read_text().strip()

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self._account / "ca.crt"))


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    pending = b""
    async for piece in content.iter_any():
        *lines, pending = (pending + piece).split(b"\n")
        for line in filter(None, lines):
            yield line
        if len(pending) > MAX_EVENT_BYTES:
            raise ApiError("an event is too long")
    if pending:
        yield pending


class Reflector(Generic[T]):
    """A copy of all objects of one kind with a label, kept in step with the server."""

    def __init__(self, api: Api, path: str, selector: str, type_: type[T], changed: Callable[[], None]) -> None:
        """The copy is empty before `run`; `changed` is called after every change."""
        self.objects: dict[str, T] = {}
        self.synced = False
        self._api = api
        self._path = path
        self._selector = selector
        self._decoder = msgspec.json.Decoder(type_)
        self._changed = changed
        self._problem = ""

    async def run(self) -> None:
        """Forever: list, watch, and list again when the server no longer knows the version."""
        pause = PAUSE_S
        while True:
            try:
                version = await self._list()
                self._say("")
                pause = PAUSE_S
                while True:
                    version = await self._watch(version)
                    await asyncio.sleep(BREATH_S)
            except GoneError as error:
                logger.debug("list again", extra={"path": self._path, "reason": str(error)})
                await asyncio.sleep(BREATH_S)
            except (ApiError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                self._say(str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _list(self) -> str:
        timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT_S)
        body = b"\n".join([line async for line in self._api.lines(self._path, self._parameters(), timeout)])
        answer = msgspec.json.decode(body, type=_List)
        items = [self._decoder.decode(item) for item in answer.items or []]
        self.objects = {item.metadata.name: item for item in items}
        self.synced = True
        self._changed()
        return answer.metadata.resource_version

    async def _watch(self, version: str) -> str:
        """Follow changes until the server ends the watch; returns the version to continue at."""
        asked = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=LIST_TIMEOUT_S, sock_read=WATCH_S + LIST_TIMEOUT_S)
        async with contextlib.aclosing(self._api.lines(self._path, self._parameters() | asked, timeout)) as lines:
            async for line in lines:
                event = msgspec.json.decode(line, type=_Event)
                if event.type == "ERROR":
                    status = msgspec.json.decode(event.object, type=_Status)
                    raise (GoneError if status.code == 410 else ApiError)(f"{status.code}: {status.message}")
                version = self._take(event) or version
        return version

    def _take(self, event: _Event) -> str:
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
        item = self._decoder.decode(event.object)
        if event.type == "DELETED":
            self.objects.pop(item.metadata.name, None)
        else:
            self.objects[item.metadata.name] = item
        self._changed()
        return item.metadata.resource_version

    def _parameters(self) -> dict[str, str]:
        return {"labelSelector": self._selector} if self._selector else {}

    def _say(self, problem: str) -> None:
        """Log when a problem begins, and when it is over."""
        if problem != self._problem:
            level = logging.WARNING if problem else logging.INFO
            logger.log(level, "Kubernetes' API", extra={"path": self._path, "reason": problem or "answers"})
        self._problem = problem
