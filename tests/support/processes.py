"""`pd-proxy` as a process of its own."""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import aiohttp
from support.proxy import RunningProxy, listening, settings


async def start(*options: str, files: int = 0) -> Process:
    """Run `pd-proxy`, with so many open files at most (0: as many as it likes)."""
    words = [sys.executable, "-m", "pd_proxy", *options]
    if files:
        words = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *words]
    return await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE, env={"PATH": os.environ["PATH"]})


@contextlib.asynccontextmanager
async def process(
    drain_timeout_s: float, workers: int = 1, files: int = 0, **fields: object
) -> AsyncIterator[tuple[RunningProxy, Process]]:
    """A proxy process that serves, and a client of it; killed if it does not end by itself."""
    chosen = settings(drain_timeout_s=drain_timeout_s, proxy_workers=workers, **fields)
    names = (
        *fields,
        "http_proxy_port",
        "proxy_port",
        "bind_host",
        "health_interval_s",
        "drain_timeout_s",
        "proxy_workers",
    )
    options = [part for name in names for part in ("--" + name.replace("_", "-"), str(getattr(chosen, name)))]
    child = await start(*options, "--canary", "off", files=files)  # these engines have no token ids
    ended = asyncio.create_task(_ended(child))
    try:
        async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as session:
            await listening(chosen.http_proxy_port, ended)
            yield RunningProxy(chosen, session, stack, asyncio.Event(), ended), child
    finally:
        if child.returncode is None:
            child.kill()
        await ended


async def _ended(child: Process) -> None:
    await child.wait()


async def log_lines(child: Process) -> list[dict[str, object]]:
    """What it logged until its end."""
    assert child.stderr is not None
    return [json.loads(line) for line in (await child.stderr.read()).splitlines()]
