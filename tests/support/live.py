"""The whole stack as processes on free ports, as users start it: proxy, a simulated prefill and decode engine, and the monitor of their boards."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from support.monitor import MonitorProcess, monitor_process
from support.simulator import settings_for, spawned

from pd_contracts.free_ports import free_port
from pd_contracts.names import Role

MODEL = "live-model"
READY_S = 30.0


@dataclass(frozen=True)
class Live:
    """Where everything listens."""

    proxy: str
    prefill: str
    decode: str
    monitor: MonitorProcess
    session: aiohttp.ClientSession

    @property
    def targets(self) -> dict[str, str]:
        """Job to host and port, as Prometheus wants them."""
        urls = {"proxy": self.proxy, "prefill": self.prefill, "decode": self.decode}
        return {job: url.removeprefix("http://") for job, url in urls.items()} | {
            "monitor": f"127.0.0.1:{self.monitor.port}"
        }

    async def page(self, job: str) -> str:
        async with self.session.get(f"http://{self.targets[job]}/metrics") as answer:
            assert answer.status == 200
            return await answer.text()

    async def serve(self, requests: int) -> None:
        """Some completions at once, read to their ends."""
        body = {"model": MODEL, "prompt": "one two three four five six", "max_tokens": 12, "stream": True}

        async def one() -> None:
            async with self.session.post(f"{self.proxy}/v1/completions", json=body) as answer:
                text = await answer.text()
                assert answer.status == 200, text
                assert "[DONE]" in text

        await asyncio.gather(*(one() for _ in range(requests)))


@contextlib.asynccontextmanager
async def live_stack() -> AsyncIterator[Live]:
    """Start everything and wait until a request can be served."""
    http, zmq = free_port(), free_port()
    clean = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "TMPDIR", "LANG"}}
    options = ["--http-proxy-port", str(http), "--proxy-port", str(zmq), "--bind-host", "127.0.0.1"]
    proxy = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pd_proxy", *options, env=clean | {"LOG_LEVEL": "WARNING"}
    )
    try:
        async with contextlib.AsyncExitStack() as stack:
            engines = {
                role: await stack.enter_async_context(
                    spawned(settings_for(role, proxy_port=zmq, proxy_host="127.0.0.1", model=MODEL, sim_gpu=gpu))
                )
                for gpu, role in enumerate((Role.PREFILL, Role.DECODE))
            }
            boards = ",".join(f"{engine.url}/sim/board" for engine in engines.values())
            monitor = stack.enter_context(
                monitor_process(MONITOR_BACKEND="simulated", SIM_BOARDS=boards, MONITOR_INTERVAL_S="0.2")
            )
            await asyncio.to_thread(monitor.wait_ready)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            url = f"http://127.0.0.1:{http}"
            await answering(session, f"{url}/ready", proxy)
            yield Live(url, engines[Role.PREFILL].url, engines[Role.DECODE].url, monitor, session)
    finally:
        if proxy.returncode is None:
            proxy.terminate()
        await proxy.wait()


async def answering(session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process) -> None:
    """Wait until an address of a process answers 200; fail if the process ends before."""
    async with asyncio.timeout(READY_S):
        while True:
            assert process.returncode is None, f"ended before {url} answered"
            with contextlib.suppress(aiohttp.ClientError):  # it may not listen yet
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
