"""Simulated engines for tests: in this process on free ports, or as processes of their own, and small clients for them."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from pd_contracts import sse
from pd_contracts.free_ports import free_port
from pd_contracts.names import REQUEST_ID_HEADER, Connector, Role
from pd_simulator.engine.loop import Engine
from pd_simulator.profile import Profile, load_profile
from pd_simulator.server import serving
from pd_simulator.settings import Settings
from pd_simulator.steps.engines import Arrival, Engines
from pd_simulator.steps.virtual_time import token_times


def fast_profile(step_ms: float = 0.5, **changes: Any) -> Profile:
    """A profile whose steps all take `step_ms`, for tests in which time is no matter; outputs never end by themselves."""
    profile = load_profile("slow-exact")
    prefill = msgspec.structs.replace(profile.prefill, base_ms=step_ms, per_token_ms=0.0)
    decode = msgspec.structs.replace(profile.decode, base_ms=step_ms, per_sequence_ms=0.0)
    return msgspec.structs.replace(profile, prefill=prefill, decode=decode, handoff={}, **changes)


def settings_for(role: Role = Role.COMBINED, **changes: Any) -> Settings:
    """Settings of an engine on free ports of this machine, whose pings go nowhere unless `proxy_port` is given."""
    defaults = {
        "bind_host": "127.0.0.1",
        "http_port": free_port(),
        "kv_port": free_port(),
        "proxy_port": free_port(),
        "sim_profile": "slow-exact",
    }
    return Settings(pd_role=role, **{**defaults, **changes})


@dataclass
class Answer:
    """What a client got: status, the JSON body, or the stream's events in order with the time of each."""

    status: int
    body: Any = None
    chunks: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def token_ids(self) -> list[int]:
        """Output ids of the first choice, streamed or not (the request must ask for them)."""
        if self.body is not None:
            return list(self.body["choices"][0]["token_ids"])
        choices = [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == 0]
        return [token for choice in choices for token in choice.get("token_ids") or []]


@dataclass
class Simulator:
    """A running engine, in this process or one of its own, and a client of it."""

    settings: Settings
    session: aiohttp.ClientSession
    engine: Engine | None = None
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Base address of the HTTP API."""
        return f"http://127.0.0.1:{self.settings.listen_http_port}"

    @property
    def kv_address(self) -> str:
        """What stands for this engine in a request id."""
        return f"127.0.0.1:{self.settings.listen_kv_port}"

    async def post(
        self, path: str, body: Any = None, *, request_id: str | None = None, data: bytes | None = None
    ) -> Answer:
        """Send JSON (or `data` as it is) and read a whole or streamed answer."""
        headers = {"Content-Type": "application/json"} | ({REQUEST_ID_HEADER: request_id} if request_id else {})
        payload = json.dumps(body).encode() if data is None else data
        async with self.session.post(self.url + path, data=payload, headers=headers) as response:
            if response.content_type != "text/event-stream":
                return Answer(response.status, json.loads(await response.read()))
            answer = Answer(response.status)
            decoder = sse.Decoder()
            async for data_read in response.content.iter_any():
                now = time.monotonic()
                for event in decoder.feed(data_read):
                    assert isinstance(event, sse.Event)
                    if event.done:
                        answer.done = True
                    else:
                        answer.chunks.append(json.loads(event.data))
                        answer.times.append(now)
            assert not decoder.incomplete
            return answer

    async def complete(self, prompt: Any, *, request_id: str | None = None, **body: Any) -> Answer:
        """`/v1/completions`, with the token ids in the answer."""
        fields = {"prompt": prompt, "return_token_ids": True, "ignore_eos": True, **body}
        return await self.post("/v1/completions", fields, request_id=request_id)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        async with self.session.get(self.url + path) as response:
            return response.status, await response.read()

    async def books(self) -> dict[str, int]:
        """`GET /sim/books`."""
        books: dict[str, int] = json.loads((await self.get("/sim/books"))[1])
        return books

    async def until(self, name: str, reached: Callable[[float], bool]) -> None:
        """Wait until the metric is as wanted.

        Raises:
            TimeoutError: if that takes more than some seconds.
        """
        async with asyncio.timeout(20):
            while not reached(await self.metric(name)):  # noqa: ASYNC110  a page has no event
                await asyncio.sleep(0.01)

    async def metric(self, name: str) -> float:
        """Value of the one series whose line starts with `name` (with its labels, as Prometheus writes them)."""
        lines = (await self.get("/metrics"))[1].decode().splitlines()
        (line,) = [line for line in lines if line.startswith(name)]
        return float(line.rpartition(" ")[2])


@contextlib.asynccontextmanager
async def running(settings: Settings, profile: Profile) -> AsyncIterator[Simulator]:
    async with serving(settings, profile) as engine, aiohttp.ClientSession() as session:
        yield Simulator(settings, session, engine)


@contextlib.asynccontextmanager
async def spawned(settings: Settings) -> AsyncIterator[Simulator]:
    """An engine in its own process with its own event loop, as it is deployed; for tests that look at the clock."""
    variables = {key.upper(): _text(value) for key, value in msgspec.structs.asdict(settings).items()}
    command = Path(sys.executable).with_name("pd-simulator")
    process = await asyncio.create_subprocess_exec(command, env={**os.environ, **variables, "LOG_LEVEL": "WARNING"})
    try:
        async with aiohttp.ClientSession() as session:
            simulator = Simulator(settings, session, process=process)
            await _healthy(simulator, process)
            yield simulator
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _healthy(simulator: Simulator, process: asyncio.subprocess.Process) -> None:
    for _ in range(600):
        assert process.returncode is None, "the simulator ended before it was healthy"
        with contextlib.suppress(aiohttp.ClientError):
            if (await simulator.get("/health"))[0] == 200:
                return
        await asyncio.sleep(0.05)
    raise TimeoutError


def _text(value: Any) -> str:
    return (
        value.value
        if isinstance(value, Role | Connector)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def pair_id(prefill: Simulator, decode: Simulator, unique: str) -> str:
    """A P2pNccl request id."""
    return f"___prefill_addr_{prefill.kv_address}___decode_addr_{decode.kv_address}_{unique}"


async def disaggregated(
    prefill: Simulator, decode: Simulator, prompt: Any, *, unique: str = "0", **body: Any
) -> tuple[Answer, Answer]:
    """What a proxy does for one completion with the engines' connector; the answers of prefill and decode."""
    connector = prefill.settings.kv_connector
    request_id = pair_id(prefill, decode, unique) if connector is Connector.P2P_NCCL else None
    ask: dict[str, Any] = {}
    if connector is Connector.NIXL:
        ask = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
    if connector is Connector.P2P:
        ask = {"kv_transfer_params": {"pd": {"key": unique, "to": [decode.kv_address]}}}
    first = await prefill.complete(prompt, request_id=request_id, **{**body, "stream": False, "max_tokens": 1, **ask})
    assert first.status == 200, first.body
    params = first.body["kv_transfer_params"]
    if connector is Connector.P2P:
        params = {"pd": {"key": unique, "from": prefill.kv_address}}
    give = {} if params is None else {"kv_transfer_params": params}
    return first, await decode.complete(prompt, request_id=request_id, **body, **give)


async def combined_tokens(prompt: Any, output: int) -> list[int]:
    """What an engine that does both writes after a prompt: `output` token ids."""
    async with running(settings_for(), fast_profile()) as combined:
        return (await combined.complete(prompt, max_tokens=output)).token_ids


def virtual_run(profile: Profile, connector: Connector | None, arrivals: Sequence[Arrival]) -> list[list[float]]:
    """Token times of each request in virtual time: one combined engine, or one prefill and one decode engine with a connector."""
    engines = Engines(0 if connector is None else 1, 1, connector, profile.memory.kv_tokens)
    return token_times(profile, engines, arrivals)
