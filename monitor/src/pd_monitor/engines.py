"""Reads the engines' token counters at the start and the end of a recording, and now and then between."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

import aiohttp

from pd_contracts.names import Role
from pd_contracts.records import EngineTokens
from pd_monitor.pages import named, tokens_of

TIMEOUT_S = 1.0

Tell = Callable[[tuple[EngineTokens, ...]], None]

_log = logging.getLogger(__name__)


class Engines:
    """The engines that a monitor knows. They are only asked while something is recorded.

    An engine that does not answer is named with the reason, like a reading of a board that failed.
    """

    def __init__(self, pages: Callable[[], Sequence[tuple[Role, str]]], interval_s: float, tell: Tell) -> None:
        """`pages` gives role and address of each engine; `tell` gets what was read."""
        self._pages = pages
        self._interval_s = interval_s
        self._tell = tell
        self._session: aiohttp.ClientSession | None = None
        self._polling: asyncio.Task[None] | None = None
        self._silent: set[str] = set()

    async def read(self) -> None:
        """Ask every engine now, all at once."""
        pages = named(self._pages())
        if not pages:
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        session = self._session
        found = await asyncio.gather(*(self._ask(session, *page) for page in pages))
        self._silent = {tokens.name for tokens in found if tokens.error}
        self._tell(tuple(found))

    def poll_while(self, wanted: Callable[[], bool]) -> None:
        """Read at intervals, in the background, as long as this is wanted."""
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(wanted))

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # our own cancellation, a line up
                await self._polling
        if self._session is not None:
            await self._session.close()

    async def _poll(self, wanted: Callable[[], bool]) -> None:
        while wanted():
            await asyncio.sleep(self._interval_s)
            if wanted():
                await self.read()

    async def _ask(self, session: aiohttp.ClientSession, name: str, role: Role, url: str) -> EngineTokens:
        begun = time.monotonic()
        try:
            async with session.get(url, allow_redirects=False) as response:
                body = await response.read()
                if response.status != 200:
                    return self._silence(name, role, f"status {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._silence(name, role, str(error) or type(error).__name__)
        # The counters are those of a moment within the request; its middle is wrong by half of its length at most.
        middle = (begun + time.monotonic()) / 2
        try:
            return tokens_of(body.decode(errors="replace"), t=middle, name=name, role=role)
        except ValueError as error:
            return self._silence(name, role, f"no metrics page: {error}")

    def _silence(self, name: str, role: Role, reason: str) -> EngineTokens:
        if name not in self._silent:
            _log.info("an engine's counters cannot be read", extra={"engine": name, "reason": reason})
        return EngineTokens(t=time.monotonic(), name=name, role=role, error=reason)
