"""The fault matrix: two simulated prefills and decodes behind a proxy, one of them faulty, and the results.

`SCENARIOS` says what must come of each fault; `run` lets it happen and reports what did. docs/reliability.md is written from
the reports, and the tests compare them with the scenarios and with that page.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from support.crowd import text_of
from support.proxy import Reply, RunningProxy, running_proxy
from support.simulator import Simulator, fast_profile, running, settings_for
from support.workers import running_workers

from pd_contracts.names import Connector, Role
from pd_contracts.stats import InstanceStats
from pd_routing.names import Routing
from pd_simulator.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
REQUESTS = 8
PROXY = {
    "ping_ttl_s": 3.5,
    "prefill_timeout_s": 1.0,
    "decode_stall_timeout_s": 1.0,
    "give_up_s": 3.0,
    "queue_timeout_s": 2.0,
    # Engines and the proxy's parent share the test's event loop; three late checks in a row take a healthy engine out.
    "health_timeout_s": 2.0,
}
PATIENCE_S = 15.0
RESTART_S = 0.3
AT_ONCE = 3
# A machine that hangs for so long makes healthy engines look faulty, given the timeouts above.
LATE_S = 0.3
TRIES = 3
LEASE_S = 1.0
LOAD_TIMEOUT_S = 0.5  # shorter than DECODE_STALL_TIMEOUT_S, as the defaults are


@dataclass(frozen=True)
class Topology:
    """Which engines there are, and how many processes the proxy has to serve them; `settings` are the proxy's own.

    `requests` arrive at once. Workers take turns on their own, so only many requests are sure to meet the faulty engine.
    """

    name: str
    engines: tuple[str, ...]
    workers: int = 1
    requests: int = REQUESTS
    settings: dict[str, Any] = field(default_factory=dict)


TWO = Topology("2P2D", ("prefill-0", "prefill-1", "decode-0", "decode-1"))
ONE = Topology("1P1D", ("prefill-0", "decode-0"))
COMBINED = Topology("2 combined", ("combined-0", "combined-1"))
WORKERS = replace(TWO, name="2P2D, PROXY_WORKERS=2", workers=2, requests=3 * REQUESTS)
MIGRATES = replace(TWO, name="2P2D, MIGRATE=on", settings={"migrate": True})
# Prompts and answers do not fit beside each other, so all requests are handed over.
SPLIT = {"routing": Routing.ADAPTIVE, "ttft_slo_ms": 60_000.0, "tpot_slo_ms": 15.0, "step_profile": "demo"}
ADAPTIVE = Topology("3 combined, ROUTING=adaptive", ("combined-0", "combined-1", "combined-2"), settings=SPLIT)


@dataclass(frozen=True)
class Scenario:
    """One fault at the first engine of a role, and the proxy's promise.

    Attributes:
        name: as in the page.
        faults: for `POST /sim/faults`; None: the process is killed, and another one starts at its address.
        state: the faulty engine's state while the fault lasts.
        clients: what clients may get: "answered", "refused" (a status), "told" (an error event), "wrong".
        retried: whether requests are tried again; None: those that were sent before anybody noticed.
        streams: whether all requests are streams; otherwise half of them are.
    """

    name: str
    role: Role
    faults: dict[str, Any] | None
    state: str
    clients: tuple[str, ...] = ("answered",)
    retried: bool | None = True
    streams: bool = False
    connector: Connector = Connector.P2P
    topology: Topology = TWO

    @property
    def title(self) -> str:
        """Distinct among all scenarios."""
        return f"{self.topology.name} {self.kv_by} {self.role.value} {self.name}"

    @property
    def kv_by(self) -> str:
        return "" if self.topology is COMBINED else NAMES[self.connector]


NAMES = {
    Connector.P2P: "P2pConnector",
    Connector.P2P_NCCL: "P2pNccl",
    Connector.NIXL: "NIXL",
    Connector.EXAMPLE: "Example",
}
# What can happen to an engine whatever its connector.
ANY = [
    Scenario("resets connections", Role.PREFILL, {"refuse": True}, "joining"),
    Scenario("resets connections", Role.DECODE, {"refuse": True}, "joining"),
    Scenario("answers 500", Role.PREFILL, {"status": 500}, "ready"),
    Scenario("answers 500", Role.DECODE, {"status": 500}, "ready"),
    Scenario("stalls before the first token", Role.PREFILL, {"stall": "before_first_token"}, "suspect"),
    Scenario("stalls before the first token", Role.DECODE, {"stall": "before_first_token"}, "suspect"),
    Scenario(
        "stalls after the first token", Role.DECODE, {"stall": "after_first_token"}, "suspect", ("answered", "told"), streams=True
    ),
    Scenario("dies mid-stream", Role.DECODE, {"die_mid_stream": True}, "ready", ("answered", "told")),
    Scenario("stops pinging, but serves", Role.PREFILL, {"mute": True}, "lost", retried=False),
    Scenario("stops pinging, but serves", Role.DECODE, {"mute": True}, "lost", retried=False),
    Scenario("pings, but hangs", Role.PREFILL, {"hang": True}, "suspect"),
    Scenario("pings, but hangs", Role.DECODE, {"hang": True}, "suspect"),
    Scenario("takes requests, runs none", Role.PREFILL, {"swallow": True}, "suspect"),
    Scenario("takes requests, runs none", Role.DECODE, {"swallow": True}, "suspect"),
    Scenario("is killed and restarts at its address", Role.PREFILL, None, "ready", retried=None),
    Scenario("is killed and restarts at its address", Role.DECODE, None, "ready", retried=None),
]  # fmt: skip
SLOW_KV = {"slow_kv_s": 0.1}
DAMAGED = Scenario(
    "sends damaged KV", Role.PREFILL, {"corrupt_kv": True}, "ready", ("answered", "wrong"), retried=False
)
# Where P2pConnector computes lost KV again, vLLM's own connectors wait for it, or decode from what lies in memory.
STOCK = [
    Scenario("loses KV that it acknowledged", Role.DECODE, {"drop_kv": True}, "suspect"),
    Scenario("takes KV slowly", Role.DECODE, SLOW_KV, "ready", retried=False),
    Scenario("has no memory for KV", Role.DECODE, {"out_of_memory": True}, "ready", ("answered", "wrong"), retried=False),
]  # fmt: skip


def alone(scenario: Scenario) -> Scenario:
    """The same fault where no other engine can take over: clients are told at once, or when a timeout is over.

    A prefill that resets a kept connection is asked once more; decode, whose request follows its announcement, always is.
    """
    begun = scenario.name == "stalls before the first token" and scenario.role is Role.DECODE  # prefill has written it
    clients = ("refused", "told") if begun or "told" in scenario.clients else ("refused",)
    kept = scenario.name == "resets connections" and scenario.role is Role.PREFILL
    retried = None if scenario.retried is None else kept
    return replace(scenario, topology=ONE, clients=clients, retried=retried)


def combined(scenario: Scenario) -> Scenario:
    """The same fault at one of two engines that do both; where it dies under streams, the others' answers were there before."""
    retried = False if scenario.name == "dies mid-stream" else scenario.retried
    return replace(scenario, topology=COMBINED, role=Role.COMBINED, retried=retried)


def handed_off(scenario: Scenario) -> Scenario:
    """The same fault with P2pConnector: prefill has written the first token, so whom decode keeps waiting then is not asked again but goes on elsewhere."""
    return replace(scenario, retried=False) if scenario.name == "stalls after the first token" else scenario


def migrates(scenario: Scenario) -> Scenario:
    """The same fault with MIGRATE=on: streams that have begun go on at the other decode engine."""
    return replace(handed_off(scenario), topology=MIGRATES, clients=("answered",))


def adaptive(scenario: Scenario) -> Scenario:
    """The same fault at one of three engines that do both and hand over to each other."""
    return replace(scenario, topology=ADAPTIVE, role=Role.COMBINED, retried=None)


BEGUN = ("stalls after the first token", "dies mid-stream", "is killed and restarts at its address")
# What becomes of streams that have begun depends there on who happened to write them.
BEFORE = ("takes requests, runs none", "is killed and restarts at its address")
SCENARIOS = [
    *map(handed_off, ANY),
    Scenario("loses KV that it acknowledged", Role.DECODE, {"drop_kv": True}, "ready", retried=False),
    Scenario("takes KV slowly", Role.DECODE, SLOW_KV, "ready", retried=False),
    Scenario("has no memory for KV", Role.DECODE, {"out_of_memory": True}, "ready", retried=False),
    DAMAGED,
    *(replace(scenario, connector=Connector.P2P_NCCL) for scenario in [*ANY, *STOCK, DAMAGED]),
    *(replace(scenario, connector=Connector.NIXL) for scenario in [*ANY, DAMAGED]),
    *(replace(scenario, connector=Connector.EXAMPLE) for scenario in ANY),
    *(alone(scenario) for scenario in ANY),
    *(combined(scenario) for scenario in ANY if scenario.role is Role.DECODE),
    *(replace(handed_off(scenario), topology=WORKERS) for scenario in ANY),
    *(migrates(scenario) for scenario in ANY if scenario.role is Role.DECODE and scenario.name in BEGUN),
    *(adaptive(scenario) for scenario in ANY if scenario.role is Role.DECODE and scenario.name in BEFORE),
]  # fmt: skip


@dataclass
class Report:
    """What came of a scenario; as in `Scenario`. `leaks`: KV stays at an engine forever."""

    clients: set[str] = field(default_factory=set)
    retried: bool = False
    state: str = ""
    leaks: bool = False
    wrong_later: int = 0

    def keeps(self, scenario: Scenario) -> bool:
        """Whether the promise was kept."""
        served = scenario.topology is ONE or "answered" in self.clients
        as_promised = self.clients <= set(scenario.clients) and scenario.retried in (self.retried, None)
        return served and as_promised and self.state == scenario.state and not self.leaks and not self.wrong_later

    def row(self, scenario: Scenario) -> str:
        words = {
            "answered": "answered",
            "refused": "an error status",
            "told": "an error event",
            "wrong": "a wrong answer",
        }
        cells = [
            scenario.topology.name,
            scenario.kv_by or "nothing",
            scenario.role.value,
            scenario.name,
            " or ".join(words[kind] for kind in words if kind in self.clients),
            "if it was asked" if scenario.retried is None else "yes" if self.retried else "no",
            self.state,
        ]
        return f"| {' | '.join(cells)} |"


class Deployment:
    """Engines and their proxy; the first of each role is the one that fails."""

    def __init__(self, proxy: RunningProxy, topology: Topology = TWO) -> None:
        self.proxy = proxy
        self._topology = topology
        self.engines: dict[str, Simulator] = {}
        self._stacks: dict[str, contextlib.AsyncExitStack] = {}
        self._settings: dict[str, Settings] = {}
        self._common: dict[str, Any] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def started(
        cls, connector: Connector = Connector.P2P, topology: Topology = TWO, **fields: Any
    ) -> AsyncIterator[Self]:
        several = topology.workers > 1
        with tempfile.TemporaryDirectory() as shared:
            async with (running_workers if several else running_proxy)(**PROXY | topology.settings | fields) as proxy:
                deployment = cls(proxy, topology)
                deployment._common = {
                    "proxy_port": proxy.settings.proxy_port,
                    "kv_connector": connector,
                    "kv_both": topology is ADAPTIVE,
                    "kv_shared_path": shared,
                    "kv_lease_s": LEASE_S,
                    "kv_load_timeout_s": LOAD_TIMEOUT_S,
                    "sim_leak_s": 0.2,
                }
                async with deployment._running():
                    yield deployment

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        try:
            for name in self._topology.engines:
                self._settings[name] = settings_for(Role(name.partition("-")[0]), **self._common)
                await self.start(name)
                assert await self.state(name, "ready") == "ready"
            yield
        finally:
            for name in running_names(self):
                await self.stop(name)

    async def start(self, name: str) -> None:
        """Start an engine, always at the same address."""
        stack = self._stacks[name] = contextlib.AsyncExitStack()
        self.engines[name] = await stack.enter_async_context(running(self._settings[name], fast_profile(step_ms=5.0)))

    async def restart(self, name: str) -> None:
        """Start an engine that was killed, and wait until the proxy knows it; until then, its checks can find the old one well."""
        killed = (await self._instance(name)).boot_id
        await self.start(name)
        await self.proxy.stats_where(lambda s: any(i.name == name and i.boot_id != killed for i in s.instances))

    async def stop(self, name: str) -> None:
        await self._stacks.pop(name).aclose()
        del self.engines[name]

    async def state(self, name: str, wanted: str) -> str:
        """The state of an engine, once it is the wanted one, or after a while."""
        with contextlib.suppress(TimeoutError):
            await self.proxy.stats_where(
                lambda s: any(i.name == name and i.state == wanted for i in s.instances), PATIENCE_S
            )
        return (await self._instance(name)).state

    async def _instance(self, name: str) -> InstanceStats:
        return next(i for i in (await self.proxy.stats()).instances if i.name == name)

    async def faults(self, name: str, faults: dict[str, Any]) -> None:
        """Switch an engine's faults."""
        assert (await self.engines[name].post("/sim/faults", faults)).status == 200

    async def ask(self, number: int, *, stream: bool) -> Reply:
        body = {"prompt": _prompt(number), "max_tokens": 6, "ignore_eos": True, "stream": stream, "temperature": 0}
        return await asyncio.wait_for(self.proxy.post(body), PATIENCE_S)

    async def occupied(self) -> int:
        """KV that lies at engines, and requests that wait for it."""
        return sum([await self.books(entry) for entry in ("held", "waiting", "leaked")])

    async def books(self, entry: str) -> int:
        """One entry of all engines' books."""
        return sum([(await engine.books())[entry] for engine in self.engines.values()])


def running_names(deployment: Deployment) -> list[str]:
    """The engines that run, the latest first."""
    return list(reversed(deployment.engines))


def kind_of(reply: Reply, right: str) -> str:
    """What a client got; fails for what no client may get: a 200 that ends without a word about it."""
    if reply.status != 200:
        assert reply.status in (502, 503, 504), reply.body
        assert reply.error["message"]
        return "refused"
    if not reply.headers["Content-Type"].startswith("application/json"):
        if '"error"' in reply.events[-1]:
            return "told"
        assert reply.events[-1] == "[DONE]", "cut silently"
    return "answered" if text_of(reply) == right else "wrong"


def _prompt(number: int) -> list[int]:
    """Token ids; each request has others."""
    return list(range(10 * number, 10 * number + 40))


async def run_all(scenarios: Sequence[Scenario]) -> "list[Report | BaseException]":
    """What came of each; faults last for seconds in which nothing happens, so some run at once."""
    turn, lateness = asyncio.Semaphore(AT_ONCE), Lateness()

    async def one(scenario: Scenario) -> Report:
        async with turn:
            return await _run_on_time(scenario, lateness)

    watching = asyncio.create_task(lateness.watch())
    try:
        return await asyncio.gather(*map(one, scenarios), return_exceptions=True)
    finally:
        watching.cancel()


class Lateness:
    """By how much this machine was late, seconds: what a task sees that wants to run every `PERIOD_S`."""

    PERIOD_S = 0.05

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []

    async def watch(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(self.PERIOD_S)
            now = clock()
            self._seen.append((now, now - before - self.PERIOD_S))

    def since(self, start: float) -> float:
        """The most since then."""
        return max((late for at, late in self._seen if at >= start), default=0.0)


async def _run_on_time(scenario: Scenario, lateness: Lateness) -> Report:
    """What came of a scenario; once more if a promise was broken while the machine was late. What is true breaks it every time."""
    for _ in range(TRIES - 1):
        start = asyncio.get_running_loop().time()
        try:
            report = await run(scenario)
            if report.keeps(scenario) or lateness.since(start) < LATE_S:
                return report
        except (AssertionError, TimeoutError):
            if lateness.since(start) < LATE_S:
                raise
    return await run(scenario)


async def run(scenario: Scenario) -> Report:
    """Let the fault happen under load, end it, and look at what is left."""
    report = Report()
    async with Deployment.started(scenario.connector, scenario.topology) as deployment:
        right = [text_of(await _answered(deployment, number)) for number in range(scenario.topology.requests)]
        faulty = f"{scenario.role.value}-0"
        if scenario.topology is ONE and scenario.faults is None:
            await asyncio.sleep(PROXY["ping_ttl_s"])  # a proxy that has just started has clients wait for engines
        await _fail(deployment, scenario, faulty)
        replies = await _load(deployment, scenario, faulty)
        report.clients = {kind_of(reply, said) for reply, said in zip(replies, right, strict=True)}
        report.retried = (await deployment.proxy.stats()).retries > 0
        report.state = await deployment.state(faulty, scenario.state)
        if scenario.faults is not None:
            await deployment.faults(faulty, {})
        assert await deployment.state(faulty, "ready") == "ready", "nobody has to restart it"
        report.leaks = await _leaks(deployment)
        again = await _load(deployment, scenario)
        report.wrong_later = sum(kind_of(reply, said) != "answered" for reply, said in zip(again, right, strict=True))
    return report


async def _answered(deployment: Deployment, number: int) -> Reply:
    """An answer before anything is wrong; on a busy machine even that may take longer than the short timeouts here."""
    async with asyncio.timeout(PATIENCE_S):
        while (reply := await deployment.ask(number, stream=False)).status != 200:
            pass
    return reply


async def _load(deployment: Deployment, scenario: Scenario, faulty: str = "") -> list[Reply]:
    """All requests at once; an engine that was killed comes back meanwhile, or afterwards if there is no other."""
    load = [
        asyncio.create_task(deployment.ask(number, stream=scenario.streams or number % 2 == 1))
        for number in range(scenario.topology.requests)
    ]
    killed = faulty and scenario.faults is None
    if killed and scenario.topology is not ONE:
        await asyncio.sleep(RESTART_S)
        await deployment.restart(faulty)
    replies = await asyncio.gather(*load)
    if killed and scenario.topology is ONE:  # or it depends on the moment whether there is somebody to ask
        await deployment.restart(faulty)
    return replies


async def _fail(deployment: Deployment, scenario: Scenario, faulty: str) -> None:
    if scenario.faults is None:
        await deployment.stop(faulty)
        return
    await deployment.faults(faulty, scenario.faults)
    if "mute" in scenario.faults:
        await deployment.state(faulty, "lost")


async def _leaks(deployment: Deployment) -> bool:
    await deployment.proxy.settled()
    loop = asyncio.get_running_loop()
    end = loop.time() + LEASE_S + 3.0
    while (occupied := await deployment.occupied()) and loop.time() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return occupied > 0


HEAD = """# What the proxy promises when engines fail

No client waits forever.
No client gets an answer that is cut off without an error, or a 200 with an empty body.
This holds whatever an engine sends, in any pieces and with any pauses (`tests/integration/test_proxy_endless.py` draws such answers at random).

| setting | ends the wait if |
| --- | --- |
| `PREFILL_TIMEOUT_S` | prefill does not answer |
| `DECODE_STALL_TIMEOUT_S` | none of an engine's answers makes progress (comments and events without output are no progress) |
| `GIVE_UP_S` | an answer makes no progress, although others of the same engine do |
| `QUEUE_TIMEOUT_S` | no engine can continue a stream |
| `MAX_ANSWER_BYTES` | an answer that is not streamed has no end |

## Each fault

The engines are simulated; they move real KV bytes and keep account of them.
One engine becomes faulty, then eight requests arrive at once (24 with `PROXY_WORKERS=2`), streamed and not streamed.

- *clients get*: "answered" is the whole and right answer.
  An error status comes before the first byte, an error event within a stream.
- *tried again*: whether the proxy sent requests that had failed to another engine.
- *the engine is meanwhile*: its state in `/stats`.

In every row, the engine serves again without help, as soon as the fault ends or it has restarted.
In every row, no KV is left behind in an engine's memory.

`python docs/write_reliability.py` writes this page from such runs.
`tests/integration/test_proxy_matrix.py` repeats them, and fails if a promise or this page is no longer true.

| engines | KV by | at | the engine | clients get | tried again | the engine is meanwhile |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
## What the table does not show

With every connector:

- An error event comes only after the first byte: a second attempt could repeat what the client has already read.
- An event of a stream that begins like a JSON object and is none ends the stream with an error event, and the request counts as failed.
  If eight events in a row differ from their predecessor in more than their text, as with log probabilities or with usage in each event, the following ones are only checked for how they begin and end: to read them whole would cost about a quarter of all the work for an event.
  On `/v1/responses` and `/v1/messages`, whose events are numbered or named, only the first 32 events of a stream are read whole, for the same reason.
- If an engine closes an idle connection just as a request arrives on it, that is no fault of the engine: the request is tried again, by the same engine if there is no other.
- With MIGRATE=on, a greedy stream continues elsewhere with the tokens that its first engine would have written, apart from rounding.
  A stream with a `seed` does so only where each token is drawn by seed and position alone.
  vLLM's V2 model runner draws like this (0.23 to 0.33, without speculative decoding); an engine with P2pConnector then has `pd_seeded_draws` in its metrics.
  The engine that continues must have the same runner, version and precision.
  The V1 model runner, which vLLM has on CPUs, gives each request a generator whose state depends on the number of draws.
  An engine that continues would start it anew and write another text, so such a stream ends with an error event.
  For the same reason, prefill writes the first token of an answer with a `seed` only if it draws as decode does.
  On an H200 with vLLM 0.33, streams with a seed continued token for token after `kill -9` of their engine, where rounding did not depend on the batch ([measured](results/h200-p2p/README.md#behind-the-proxy-with-engines-killed)).
  That prefill writes the first token of such an answer has not been tried on GPUs.
- Damaged KV leads to wrong answers without an error, and so does a decode engine without memory for KV (with vLLM's own connectors).
  No proxy can see that in a single answer.
  If the fault is there from the start, the canary at admission finds it; later, `POST /admin/canary` finds it.
  The pair then gets no more requests.
- If a worker is killed (`PROXY_WORKERS` above 1), only its own clients lose their connections.
  The KV that it had sent out is listed in memory that outlives it.
  The parent has this KV consumed, like any other KV that may still be at an engine.
  For a moment more KV than `KV_IN_FLIGHT_BYTES` may be on its way, because this KV is not counted.
  KV that does not fit into the list stays at the decode engine: that of more than 4,096 simultaneous hand-overs of one worker, or of a request with more than about thirty prompts.
  If the parent is killed, its workers end too, and the same KV is left behind as by a proxy with one process.

With P2pConnector nothing is left behind:

- KV that decode lost, refused or never received is computed again there.
- Prefill is ended if its client has left.
- A prefill that answers too late is ended three seconds after `PREFILL_TIMEOUT_S`.
  Until then it shows the proxy whether the engine has stalled.

With vLLM's own connectors:

- If decode breaks off or stalls before its first byte, it is unknown whether it has used the KV of the request.
  A P2pNccl decode engine that is asked for KV that is gone hangs forever.
  So the proxy asks for nothing until the engine serves again.
  Then it sends the KV of a short prompt under the same id, which replaces the old KV, and one token consumes it.
  (The simulators follow the source of vLLM 0.23's connector here; this has not been tried on GPUs.)
- A decode engine that loses acknowledged KV hangs as a whole, while its health checks and pings still succeed.
  The proxy notices that none of its streams makes progress, and sends it no more requests.
  Clients get an error, or their requests are tried elsewhere.
  The proxy then sends the KV that the engine may lack once more.
- A prefill engine that stalls is not cancelled before `GIVE_UP_S`, because the KV that it sends later must be consumed.
  Another engine serves its clients.
- Some KV at a P2pNccl decode engine goes only when its process ends: that of an engine that never serves again, and what was not consumed yet when the proxy itself was killed, because only the proxy knew the ids.
  No proxy can avoid this.
  A decode engine whose KV listener has died accepts no KV any more.
- KV for NixlConnector has a lease at prefill; when it ends, KV that nobody fetched is freed.
- ExampleConnector's KV is in files; the engine images delete old ones.
"""


def page(rows: list[str], rolling: str) -> str:
    """docs/reliability.md."""
    return HEAD + "\n".join(rows) + "\n" + TAIL + rolling
