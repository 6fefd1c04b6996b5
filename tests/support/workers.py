"""Proxies of several processes under test: which processes they are, and clients whose every request may meet another one."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import psutil
from support.aio import until
from support.proxy import RawClient, RunningProxy, running_proxy

WORKERS = 2
# The kernel spreads connections by a hash: so many never all meet the same one of two workers, but once in 10,000 times.
MANY = 14


@contextlib.asynccontextmanager
async def running_workers(**fields: Any) -> AsyncIterator[RunningProxy]:
    """A proxy whose parent is in this process and which has two workers; every request comes over a connection of its own."""
    count = fields.setdefault("proxy_workers", WORKERS)
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with (
        running_proxy(**fields) as proxy,
        aiohttp.ClientSession(connector=connector) as each,
    ):
        await asyncio.wait_for(_serving(proxy, count), 90)
        yield replace(proxy, session=each)


async def _serving(proxy: RunningProxy, count: int) -> None:
    while len(listening(proxy)) < count:  # noqa: ASYNC110  a process has no event to wait on
        await asyncio.sleep(0.05)


def workers(parent: int = 0) -> list[psutil.Process]:
    """The worker processes of a parent, or of this process."""
    children = psutil.Process(parent or os.getpid()).children()
    return [child for child in children if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "pd_proxy.processes.worker" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False  # it ended meanwhile


def listening(proxy: RunningProxy, parent: int = 0) -> list[psutil.Process]:
    """Those of the workers that clients can connect to."""
    return [one for one in workers(parent) if _sockets(one, proxy, psutil.CONN_LISTEN)]


def clients(process: psutil.Process, proxy: RunningProxy) -> int:
    """Clients that are connected to a worker."""
    return _sockets(process, proxy, psutil.CONN_ESTABLISHED)


def _sockets(process: psutil.Process, proxy: RunningProxy, status: str) -> int:
    try:
        found = process.net_connections("tcp")
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0  # it ended meanwhile
    return sum(one.laddr.port == proxy.settings.http_proxy_port and one.status == status for one in found)


async def spread(proxy: RunningProxy, body: Any, parent: int = 0) -> list[RawClient]:
    """Requests over so many connections that every worker has some of them."""
    found = [await RawClient.send(proxy, body) for _ in range(MANY)]
    await until(lambda: all(clients(one, proxy) for one in workers(parent)))
    return found


def series(page: bytes, name: str) -> dict[str, float]:
    """A family's samples on a page of metrics, by what stands between the braces."""
    lines = [line for line in page.decode().splitlines() if line.startswith((name + " ", name + "{"))]
    parted = [line.rpartition(" ") for line in lines]
    return {labels[len(name) :].strip("{}"): float(value) for labels, _, value in parted}
