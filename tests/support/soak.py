"""A proxy under stress for minutes: engines of both roles whose faults come and go at random, and many misbehaving clients.

Nothing here is expected to go well all the time. What must hold at the end: every request was answered, refused or told, none
wrongly; nobody waits; the proxy's own counts are the clients'; no KV is left at an engine; and its memory did not grow.
"""

import asyncio
import contextlib
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from support.crowd import Crowd
from support.proxy import listening
from support.simulator import Simulator, settings_for, spawned

from pd_contracts.free_ports import free_ports
from pd_contracts.names import Connector, Role
from pd_contracts.stats import ProxyStats
from pd_proxy.settings import Settings as ProxySettings
from pd_routing.names import Routing
from pd_simulator.settings import Settings

PROFILE: Final = Path(__file__).with_name("soak.toml")
MODEL: Final = "soak-model"
PROXY: Final[dict[str, Any]] = {
    "ping_ttl_s": 8.0,  # engines ping every 3 s
    "health_interval_s": 0.3,
    "health_timeout_s": 1.0,
    "probe_interval_s": 0.5,
    "prefill_timeout_s": 3.0,
    "decode_stall_timeout_s": 2.0,
    "give_up_s": 6.0,
    "retry_budget_s": 8.0,
    "abort_grace_s": 0.3,
    "queue_timeout_s": 3.0,
    "kv_in_flight_bytes": 512 * 131072,
    "max_in_flight": 200,
    "drain_timeout_s": 10.0,
    "log_level": "WARNING",
}
# No limit above adds up to more than this, whatever happens.
PATIENCE_S: Final = 40.0
COMMON: Final[list[dict[str, Any]]] = [
    {"refuse": True},
    {"status": 500},
    {"status": 429},
    {"hang": True},
    {"mute": True},
    {"stall": "before_first_token"},
    {"swallow": True},
]
FAULTS: Final[dict[Role, list[dict[str, Any]]]] = {
    Role.PREFILL: COMMON,
    Role.DECODE: [
        *COMMON,
        {"stall": "after_first_token"},
        {"die_mid_stream": True},
        {"drop_kv": True},
        {"slow_kv_s": 0.05},
    ],
}
FAULTS[Role.COMBINED] = FAULTS[Role.DECODE]
# Under it prompts and answers do not fit beside each other, so requests are handed over.
ADAPTIVE: Final[dict[str, Any]] = {
    "routing": Routing.ADAPTIVE,
    "ttft_slo_ms": 60_000.0,
    "tpot_slo_ms": 26.0,
    "step_profile": "demo",
}
RESTART: Final = "is killed"
SETTLE_S: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do, for how long, and how rudely."""

    seconds: float = 600.0
    clients: int = 24
    prefills: int = 2
    decodes: int = 2
    seed: int = 1
    connector: Connector = Connector.P2P
    combined: int = 0
    migrate: str = "on"
    healthy_s: float = 8.0
    faulty_s: float = 4.0
    pause_s: float = 0.1


@dataclass
class Outcome:
    """What came of it; `books` are all engines' together, `memory_mb` the proxy's every second."""

    crowd: Crowd
    faults: Counter[str] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)
    books: Counter[str] = field(default_factory=Counter)
    counted: int = 0
    in_flight: int = 0
    owed: int = 0
    drained: int = 0
    given_up: int = 0
    retries: int = 0
    handed_off: int = 0
    migrations: int = 0
    settled_s: float = 0.0
    away: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float | None:
        """The proxy's memory at the end as a multiple of what it was after the first third; None if that says nothing yet."""
        if len(self.memory_mb) < 90:
            return None
        third, tenth = len(self.memory_mb) // 3, max(10, len(self.memory_mb) // 10)
        return statistics.median(self.memory_mb[-tenth:]) / statistics.median(self.memory_mb[third : third + tenth])

    def complaints(self) -> list[str]:
        """What must not be; empty if all is well."""
        tally = self.crowd.tally
        growth = self.growth
        found = {
            f"{len(tally.stuck)} requests stuck: {tally.stuck[:3]}": tally.stuck,
            f"{len(tally.broken)} broken answers: {tally.broken[:3]}": tally.broken,
            f"{len(tally.wrong)} wrong answers: {tally.wrong[:3]}": tally.wrong,
            f"{tally.outcomes['reset'] + tally.outcomes['unread']} unanswered": tally.outcomes["reset"] + tally.outcomes["unread"],
            f"clients sent {tally.seen} requests, the proxy counted {self.counted}": self.counted != tally.seen,
            f"engines did not come back: {self.away}": self.away,
            f"{self.in_flight} requests still in flight": self.in_flight,
            f"KV left at engines: {dict(self.books)}": self.books["held"] or self.books["waiting"] or self.books["leaked"],
            f"{self.owed} requests' KV still owed, {self.given_up} given up": self.owed or self.given_up,
            f"memory grew by a factor of {growth or 0:.2f}": growth is not None and growth > 1.15,
        }  # fmt: skip
        return [sentence for sentence, wrong in found.items() if wrong]

    def table(self) -> list[tuple[str, str]]:
        tally, growth = self.crowd.tally, self.growth
        rows = [("requests", str(sum(tally.outcomes.values())))]
        rows += [(f"  {name}", str(count)) for name, count in tally.outcomes.most_common()]
        rows += [("faults", str(sum(self.faults.values())))]
        rows += [(f"  {name}", str(count)) for name, count in self.faults.most_common()]
        rows += [
            ("stuck, broken, wrong", f"{len(tally.stuck)}, {len(tally.broken)}, {len(tally.wrong)}"),
            ("longest request", f"{tally.longest_s:.1f} s"),
            ("counted by the proxy", f"{self.counted} of {tally.seen}"),
            ("tried again", str(self.retries)),
            ("first token by prefill", str(self.handed_off)),
            ("streams that went on elsewhere", str(self.migrations)),
            ("abandoned KV that was used up", str(self.drained)),
            ("KV received, left, leaked", f"{self.books['received']}, {self.books['held']}, {self.books['leaked']}"),
            ("settled after", f"{self.settled_s:.1f} s"),
            ("proxy's memory", f"{self.memory_mb[0]:.0f} to {max(self.memory_mb):.0f} MB" if self.memory_mb else "?"),
            ("memory at the end / after a third", f"{growth:.3f}" if growth else "too short to say"),
        ]
        return rows


class Engine:
    """One simulated engine in a process of its own, which can be killed and comes back at its address."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self._stack = contextlib.AsyncExitStack()
        self.simulator: Simulator | None = None

    async def start(self) -> None:
        """Start the process and wait until it is healthy."""
        self._stack = contextlib.AsyncExitStack()
        self.simulator = await self._stack.enter_async_context(spawned(self.settings))

    async def kill(self) -> None:
        """End the process without a word."""
        assert self.simulator is not None
        assert self.simulator.process is not None
        self.simulator.process.kill()
        await self.stop()

    async def stop(self) -> None:
        self.simulator = None
        await self._stack.aclose()

    async def faults(self, faults: dict[str, Any]) -> None:
        """Switch its faults."""
        assert self.simulator is not None
        assert (await self.simulator.post("/sim/faults", faults)).status == 200


class Soak:
    """The processes, the crowd, and what disturbs them."""

    def __init__(self, plan: Plan, proxy: asyncio.subprocess.Process, port: int, engines: list[Engine]) -> None:
        self.plan = plan
        self.outcome = Outcome(Crowd(port, plan.seed, patience_s=PATIENCE_S, model=MODEL))
        self._proxy = proxy
        self._url = f"http://127.0.0.1:{port}"
        self._engines = engines
        self._ending = asyncio.Event()

    async def run(self) -> Outcome:
        """Soak, let everything end, and look at what is left."""
        async with aiohttp.ClientSession() as session:
            await self._until_ready(session)
            learned = await self.outcome.crowd.learn(session)
            self.outcome.crowd.tally.seen += learned
            asyncio.get_running_loop().call_later(self.plan.seconds, self._ending.set)
            async with asyncio.TaskGroup() as group:
                for number, engine in enumerate(self._engines):
                    group.create_task(self._disturb(engine, random.Random(self.plan.seed * 1000 + number)))
                for _ in range(self.plan.clients):
                    group.create_task(self._come_again())
                group.create_task(self._weigh())
            await self._settle(session)
            await self._count(session)
        return self.outcome

    async def _come_again(self) -> None:
        chance = random.Random(self.plan.seed)
        while not await self._pause(chance.expovariate(1 / self.plan.pause_s)):
            await self.outcome.crowd.one()

    async def _pause(self, seconds: float) -> bool:
        """Wait; True if the end has come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        return self._ending.is_set()

    async def _disturb(self, engine: Engine, chance: random.Random) -> None:
        kinds: list[dict[str, Any] | str] = [*FAULTS[engine.settings.pd_role], RESTART]
        while not await self._pause(chance.expovariate(1 / self.plan.healthy_s)):
            kind = chance.choice(kinds)
            name = kind if isinstance(kind, str) else "=".join(str(part) for part in next(iter(kind.items())))
            self.outcome.faults[f"{engine.settings.pd_role.value} {name}"] += 1
            if isinstance(kind, str):
                await engine.kill()
            else:
                await engine.faults(kind)
            await self._pause(chance.uniform(0.2, 2 * self.plan.faulty_s))
            if isinstance(kind, str):
                await engine.start()
            else:
                await engine.faults({})

    async def _weigh(self) -> None:
        while not await self._pause(1.0):
            self.outcome.memory_mb.append(resident_mb(self._proxy.pid))

    async def _until_ready(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(SETTLE_S):
            while [i.state for i in (await self._stats(session)).instances] != ["ready"] * len(self._engines):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _settle(self, session: aiohttp.ClientSession) -> None:
        """Wait until nobody waits and nothing is owed, or for as long as that may take at most."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._until_ready(session)
        except TimeoutError:
            self.outcome.away = [f"{i.name} {i.state}: {i.reason}" for i in (await self._stats(session)).instances]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while await self._busy(session):  # noqa: ASYNC110  # another process has no event to wait on
                    await asyncio.sleep(0.2)
        self.outcome.settled_s = loop.time() - began

    async def _busy(self, session: aiohttp.ClientSession) -> bool:
        stats = await self._stats(session)
        self.outcome.owed = int(sum(await self._metric(session, "pd_proxy_kv_owed ")))
        self.outcome.in_flight = stats.in_flight + sum(i.in_flight for i in stats.instances)
        self.outcome.drained, self.outcome.retries = stats.drained, stats.retries
        self.outcome.handed_off, self.outcome.migrations = stats.handed_off, stats.migrations
        self.outcome.books = await self._books()
        held = self.outcome.books["held"] + self.outcome.books["waiting"] + self.outcome.books["leaked"]
        return bool(self.outcome.owed or self.outcome.in_flight or held)

    async def _books(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for engine in self._engines:
            assert engine.simulator is not None
            total.update(await engine.simulator.books())
        return total

    async def _count(self, session: aiohttp.ClientSession) -> None:
        self.outcome.counted = int(sum(await self._metric(session, "pd_proxy_requests_total{")))
        self.outcome.given_up = int(sum(await self._metric(session, 'pd_proxy_drains_total{result="failed"}')))

    async def _stats(self, session: aiohttp.ClientSession) -> ProxyStats:
        async with session.get(f"{self._url}/stats") as response:
            return msgspec.json.decode(await response.read(), type=ProxyStats)

    async def _metric(self, session: aiohttp.ClientSession, start: str) -> list[float]:
        async with session.get(f"{self._url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]


def resident_mb(pid: int) -> float:
    """Memory that a process occupies now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextlib.asynccontextmanager
async def proxy_process(settings: ProxySettings) -> AsyncIterator[asyncio.subprocess.Process]:
    """`pd-proxy` with these settings, serving; killed if it does not end when asked to."""
    defaults = msgspec.structs.asdict(ProxySettings())
    chosen = {key: value for key, value in msgspec.structs.asdict(settings).items() if value != defaults[key]}
    options = [part for key, value in chosen.items() for part in ("--" + key.replace("_", "-"), str(value).lower())]
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "pd_proxy", *options)
    ended = asyncio.create_task(_wait(child))
    try:
        await listening(settings.http_proxy_port, ended)
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_timeout_s + 5):
                await asyncio.shield(ended)
        if child.returncode is None:
            child.kill()
        await ended


async def _wait(child: asyncio.subprocess.Process) -> None:
    await child.wait()


async def soak(plan: Plan) -> Outcome:
    """Start everything, soak, stop everything."""
    http_port, zmq_port = free_ports(2)
    roles = [Role.COMBINED] * plan.combined or [Role.PREFILL] * plan.prefills + [Role.DECODE] * plan.decodes
    settings = ProxySettings(
        http_proxy_port=http_port,
        proxy_port=zmq_port,
        bind_host="127.0.0.1",
        kv_connector=plan.connector,
        migrate=plan.migrate == "on",
        **PROXY,
        **(ADAPTIVE if plan.combined else {}),
    )
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_process(settings))
        engines = []
        for number, role in enumerate(roles):
            chosen = settings_for(
                role,
                proxy_port=zmq_port,
                instance=number,
                sim_profile=str(PROFILE),
                model=MODEL,
                kv_connector=plan.connector,
                kv_both=role is Role.COMBINED,
                kv_load_timeout_s=1.0,
                vllm_host_ip="127.0.0.1",
                proxy_host="127.0.0.1",
                sim_leak_s=5.0,
            )
            engine = Engine(f"{role.value}-{number}", chosen)
            stack.push_async_callback(engine.stop)
            await engine.start()
            engines.append(engine)
        return await Soak(plan, proxy, http_port, engines).run()
