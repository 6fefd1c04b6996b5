"""Two proxies share engines: each serves alone, and of one that dies only the open connections are lost."""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from support.live import answering
from support.simulator import Simulator, settings_for, spawned

from pd_contracts.free_ports import free_port
from pd_contracts.names import Connector, Role

MODEL = "shared-model"
BODY = {"model": MODEL, "prompt": [5] * 64, "max_tokens": 40, "temperature": 0, "stream": True}


@dataclass(eq=False)
class ProxyProcess:
    """One of the proxies."""

    http: int = field(default_factory=free_port)
    zmq: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Run it, and wait until it can serve."""
        options = ["--http-proxy-port", self.http, "--proxy-port", self.zmq, "--bind-host", "127.0.0.1"]
        fast = ["--log-level", "CRITICAL", "--drain-timeout-s", 20]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pd_proxy", *map(str, [*options, *fast])
        )
        await answering(session, f"{self.url}/ready", self.process)

    async def end(self, *, kill: bool) -> None:
        """SIGKILL or SIGTERM, and wait for its end."""
        assert self.process is not None
        if self.process.returncode is None:
            (self.process.kill if kill else self.process.terminate)()
        await self.process.wait()


@contextlib.asynccontextmanager
async def deployment() -> AsyncIterator[tuple[list[ProxyProcess], list[Simulator], aiohttp.ClientSession]]:
    """Two proxies, a prefill and a decode engine that announce themselves to both."""
    proxies = [ProxyProcess(), ProxyProcess()]
    hosts = ",".join(f"127.0.0.1:{proxy.zmq}" for proxy in proxies)
    shared: dict[str, Any] = {"proxy_host": hosts, "model": MODEL, "kv_connector": Connector.P2P, "sim_profile": "demo"}
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        engines = [
            await stack.enter_async_context(spawned(settings_for(role, **shared)))
            for role in (Role.PREFILL, Role.DECODE)
        ]
        for proxy in proxies:
            stack.push_async_callback(proxy.end, kill=True)
        await asyncio.gather(*(proxy.start(session) for proxy in proxies))
        yield proxies, engines, session


class Load:
    """Clients behind a balancer that sends them to the proxies in turn, and to the next one if one takes no connection."""

    def __init__(self, proxies: list[ProxyProcess], session: aiohttp.ClientSession) -> None:
        self._proxies = proxies
        self._session = session
        self._tasks: list[asyncio.Task[None]] = []
        self.outcomes: Counter[tuple[int, str]] = Counter()
        self.texts: set[str] = set()

    async def run(self, seconds: float, every_s: float = 0.05) -> None:
        """Begin requests at this pace."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            self._tasks.append(asyncio.create_task(self._one(len(self._tasks))))
            await asyncio.sleep(every_s)

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _one(self, number: int) -> None:
        for attempt in range(2):
            index = (number + attempt) % 2
            try:
                async with self._session.post(f"{self._proxies[index].url}/v1/completions", json=BODY) as answer:
                    self.outcomes[index, await self._read(answer)] += 1
                    return
            except aiohttp.ClientConnectorError:
                continue  # the balancer's business
            except aiohttp.ClientError:
                self.outcomes[index, "cut"] += 1
                return
        self.outcomes[-1, "nobody"] += 1

    async def _read(self, answer: aiohttp.ClientResponse) -> str:
        body = (await answer.read()).decode()
        if answer.status != 200:
            return f"status {answer.status}"
        data = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
        if data[-1] != "[DONE]" or any('"error"' in one for one in data):
            return "broken"
        self.texts.add("".join(c["text"] for one in data[:-1] for c in json.loads(one)["choices"]))
        return "whole"


async def test_a_killed_proxy_takes_only_its_own_connections_along() -> None:
    async with deployment() as (proxies, engines, session):
        load = Load(proxies, session)
        running = asyncio.create_task(load.run(4.0))
        await asyncio.sleep(1.5)
        await proxies[0].end(kill=True)
        await running
        await load.done()

        assert {what for _, what in load.outcomes} <= {"whole", "cut"}, load.outcomes
        assert load.outcomes[0, "cut"] > 0
        assert load.outcomes[1, "cut"] == 0
        assert load.outcomes[1, "whole"] > 20
        assert len(load.texts) == 1
        await proxies[0].start(session)  # it hears of the engines at once, and serves again
        again = Load(proxies, session)
        await again.run(0.5)
        await again.done()
        assert {what for _, what in again.outcomes} == {"whole"}
        for engine in engines:
            books = json.loads((await engine.get("/sim/books"))[1])
            assert books["held"] == books["waiting"] == 0, books


async def test_a_rolling_update_of_the_proxies_loses_nothing() -> None:
    async with deployment() as (proxies, _, session):
        load = Load(proxies, session)
        running = asyncio.create_task(load.run(5.0, every_s=0.1))
        for proxy in proxies:
            await asyncio.sleep(0.5)
            await proxy.end(kill=False)
            await proxy.start(session)
        await running
        await load.done()

        # A proxy that is told to end serves what it has, and says 503 to what comes meanwhile; a balancer asks /ready and sends it nothing.
        assert {what for _, what in load.outcomes} <= {"whole", "status 503"}, load.outcomes
        assert sum(count for (_, what), count in load.outcomes.items() if what == "whole") > 20
        assert len(load.texts) == 1
