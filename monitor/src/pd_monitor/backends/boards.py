"""Boards of simulators, polled over HTTP (`GET /sim/board`, see `pd_contracts.board`).

A board reports its own index, role and monotonic clock. A simulator on this host shares our clock; a time that does not lie within
the poll comes from another host, and the middle of the poll stands in for it.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp
import msgspec

from pd_contracts.board import Board
from pd_contracts.names import Role
from pd_contracts.records import GpuInfo, GpuSample
from pd_monitor.reading import Reading, answered, lost

TIMEOUT_S = 0.5
RETRY_S = 1.0
# Clock readings around a poll are not taken at the same instant as the board's own.
CLOCK_SLACK_S = 0.05

_decoder = msgspec.json.Decoder(Board)


class _PollError(Exception):
    """The board did not answer; the message is the reason."""


@dataclass(slots=True)
class _Source:
    """One address: what it last said about itself and, while it does not answer, why."""

    url: str
    info: GpuInfo | None = None
    down: str = ""
    revival: asyncio.Task[None] | None = None


class SimulatedBoards:
    """Polls all boards at once. One that fails is retried beside the samples, so that it does not hold up the others."""

    name = "simulated"
    simulated = True

    def __init__(self, urls: Sequence[str], timeout_s: float = TIMEOUT_S, retry_s: float = RETRY_S) -> None:
        self._sources = [_Source(url) for url in urls]
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._session: aiohttp.ClientSession | None = None

    @property
    def engines(self) -> list[tuple[Role, str]]:
        """Role and metrics page of the engines whose boards were found."""
        known = [(source.info.role, source.url) for source in self._sources if source.info is not None]
        return [(role, urljoin(url, "/metrics")) for role, url in known if role is not None]

    async def sample(self) -> Reading:
        if self._session is None:
            self._session = _new_session(self._timeout_s)
        session = self._session
        polled = await asyncio.gather(*(self._sample(session, source) for source in self._sources))
        claims = [(source.info, sample) for source, sample in zip(self._sources, polled, strict=True) if source.info]
        gpus, samples, doubles = settle(claims)
        silent = [f"{source.url}: {source.down}" for source in self._sources if source.info is None]
        return Reading(gpus, samples, "; ".join([*doubles, *silent]))

    async def close(self) -> None:
        """Stop retrying and close the connections."""
        revivals = [source.revival for source in self._sources if source.revival is not None]
        for task in revivals:
            task.cancel()
        await asyncio.gather(*revivals, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _sample(self, session: aiohttp.ClientSession, source: _Source) -> GpuSample | None:
        if not source.down:
            try:
                return await _poll(session, source)
            except _PollError as error:
                source.down = str(error)
                source.revival = asyncio.create_task(self._revive(session, source))
        return None if source.info is None else lost(source.info.index, time.monotonic(), source.down)

    async def _revive(self, session: aiohttp.ClientSession, source: _Source) -> None:
        while source.down:
            await asyncio.sleep(self._retry_s)
            try:
                await _poll(session, source)
                source.down = ""
            except _PollError as error:
                source.down = str(error)


def settle(
    claims: Iterable[tuple[GpuInfo, GpuSample | None]],
) -> tuple[tuple[GpuInfo, ...], tuple[GpuSample, ...], list[str]]:
    """One board per index: a live one comes before one that is gone (it took the GPU over), then the earlier one.

    Two live boards with one index are a mistake in the simulators' settings. Adding them up would make two boards' energy
    one, so the later is left out, and the third value says so.
    """
    chosen: dict[int, tuple[GpuInfo, GpuSample]] = {}
    problems = []
    for info, sample in sorted(
        ((info, sample) for info, sample in claims if sample is not None), key=lambda claim: not answered(claim[1])
    ):
        if info.index not in chosen:
            chosen[info.index] = (info, sample)
        elif answered(sample):
            problems.append(f"two simulators call their board GPU {info.index}; give each an index of its own")
    kept = [chosen[index] for index in sorted(chosen)]
    return tuple(info for info, _ in kept), tuple(sample for _, sample in kept), problems


def on_our_clock(t: float, begun: float, ended: float) -> float:
    """The board's time if it can be ours, else the middle of the poll."""
    return t if begun - CLOCK_SLACK_S <= t <= ended + CLOCK_SLACK_S else (begun + ended) / 2


def _new_session(timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        connector=aiohttp.TCPConnector(limit_per_host=2, keepalive_timeout=60),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _poll(session: aiohttp.ClientSession, source: _Source) -> GpuSample:
    begun = time.monotonic()
    try:
        async with session.get(source.url, allow_redirects=False) as response:
            body = await response.read()
            if response.status != 200:
                msg = f"status {response.status}"
                raise _PollError(msg)
    except TimeoutError:
        msg = "no answer in time"
        raise _PollError(msg) from None
    except aiohttp.ClientError as error:
        raise _PollError(str(error) or type(error).__name__) from error
    ended = time.monotonic()
    try:
        board = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        msg = f"no board: {error}"
        raise _PollError(msg) from error
    source.info = board.info
    return msgspec.structs.replace(
        board.sample,
        index=board.info.index,
        role=board.info.role or board.sample.role,
        t=on_our_clock(board.sample.t, begun, ended),
    )
