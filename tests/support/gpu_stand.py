"""Real engines with P2pConnector behind pdstack's proxy on one or two GPUs, and clients that keep what they were sent.

All engines that the selected tests need start together. REHEARSE=1 puts simulators in their place, REHEARSE=cpu vLLM's CPU engine.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from support.gpu import Processes
from support.stack import ROOT
from support.vllm_engines import page_of, series_of
from support.waiting import until

from pd_contracts.free_ports import free_ports
from pd_contracts.health import probe
from pd_contracts.ports import KV_PORT_STEP

REHEARSE = os.environ.get("REHEARSE", "")
SIMULATED = REHEARSE not in ("", "cpu")
SERVED = "tiny"
START_S = 420
VOCABULARY = 1000
MODULES = sorted(str(path.parent.relative_to(ROOT)) for path in (*ROOT.glob("*/src"), *ROOT.glob("services/*/src")))
# Prompts are computed in steps of 512 tokens, so that long ones travel in parts; few sizes of graphs make a short start.
STEPS = "--max-num-batched-tokens 512 --max-num-seqs 128"
GRAPHS = """--compilation-config '{"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128]}'"""
CACHE = "--kv-cache-memory-bytes 4294967296"
ON_GPU = {
    "DTYPE": "float16",
    "GPU_MEMORY_UTILIZATION": "0.03",
    "KV_LANDING_BYTES": str(1 << 30),
    "KV_STAGING_BYTES": str(1 << 29),
    "ENGINE_ARGS": f"{STEPS} {GRAPHS} {CACHE}",
}
ON_CPU = {"ENGINE_DEVICE": "cpu", "DTYPE": "float32", "ENGINE_ARGS": "--max-num-batched-tokens 512"}
GONE = (aiohttp.ClientError, ConnectionError)


@dataclass(frozen=True)
class Place:
    """An engine to start: the name of its log, its role, its GPU, and its number among those of its role."""

    name: str
    role: str
    gpu: str
    number: int = 0


@dataclass(frozen=True)
class Kind:
    """A deployment to try.

    `plain`: the GPU of an ordinary engine to compare with; if empty, the first decode is asked directly.
    `tie_nats`: two tokens of which the reference finds one less likely by no more than this are as good as equal.
    """

    name: str
    places: tuple[Place, ...]
    plain: str = ""
    engines: Mapping[str, str] = field(default_factory=dict)
    proxy: Mapping[str, str] = field(default_factory=dict)
    tie_nats: float = 0.02


@dataclass
class Engine:
    """A running engine and how it was started."""

    place: Place
    url: str
    kv: str
    variables: dict[str, str]
    processes: Processes
    starts: int = 0

    def start(self) -> None:
        """Start it, or start it anew at the same addresses."""
        self.starts += 1
        module = "pd_simulator" if SIMULATED else "pd_engine"
        self.processes.start(self.label, sys.executable, "-m", module, **self.variables)

    @property
    def label(self) -> str:
        """Name of its process and its log."""
        return f"{self.place.name}-{self.starts}"

    @property
    def member(self) -> str:
        """Its name at the proxy."""
        return f"{self.place.role}-{self.place.number}"

    def kill(self) -> None:
        """`kill -9` of the engine with all that belongs to it, as when a container is killed."""
        process = self.processes.running.pop(self.label)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def answers(self) -> bool:
        return probe(f"{self.url}/health") is None

    def series(self) -> dict[str, float]:
        """Values of the connector's series."""
        return {} if SIMULATED else series_of(self.url)


class Stand:
    """A proxy with its engines; what they have in common is in `kind`."""

    def __init__(self, kind: Kind, model: Path, folder: Path, scratch: Path) -> None:
        self.kind = kind
        self.processes = Processes(folder, scratch)
        ports = free_ports(2 * len(kind.places) + 4)
        proxy = {"HTTP_PROXY_PORT": str(ports[0]), "PROXY_PORT": str(ports[1])}
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.common = {**self._common(model), **proxy, **kind.engines}
        self.processes.start(f"{kind.name}-proxy", sys.executable, "-m", "pd_proxy", **paths(), **proxy, **kind.proxy)
        self.engines = {
            place.name: self._engine(place, *ports[4 + 2 * index : 6 + 2 * index])
            for index, place in enumerate(kind.places)
        }
        self.plain = self._plain(kind.plain, *ports[2:4]) if kind.plain else None
        for engine in (*self.engines.values(), *([self.plain] if self.plain else [])):
            engine.start()

    def _common(self, model: Path) -> dict[str, str]:
        sockets = self.processes.scratch / "sockets"
        sockets.mkdir(parents=True, exist_ok=True)
        return {
            **paths(),
            **(ON_CPU if REHEARSE == "cpu" else ON_GPU),
            "MODEL": SERVED if SIMULATED else str(model),
            "SERVED_MODEL_NAME": SERVED,
            "MAX_MODEL_LEN": "8192",
            "VLLM_HOST_IP": "127.0.0.1",
            "PROXY_HOST": "127.0.0.1",
            "KV_SOCKET_FOLDER": str(sockets),
            "KV_LOAD_TIMEOUT_S": "20",
            "VLLM_USE_V2_MODEL_RUNNER": "0" if REHEARSE == "cpu" else "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "2",
            **({"SIM_PROFILE": "h200-llama3-8b"} if SIMULATED else {}),
        }

    def _engine(self, place: Place, http: int, kv: int) -> Engine:
        # An engine's ports are counted from its role's first ones by its number.
        bases = {"HTTP": http - place.number, "KV": kv - KV_PORT_STEP * place.number}
        own = {f"{place.role.upper()}_{kind}_PORT": str(base) for kind, base in bases.items()}
        own |= {"INSTANCE": str(place.number), "PD_ROLE": place.role, "CUDA_VISIBLE_DEVICES": place.gpu}
        own |= {"VLLM_CACHE_ROOT": str(self.processes.scratch / "cache" / place.name)}  # kept when it starts anew
        return Engine(place, f"http://127.0.0.1:{http}", f"127.0.0.1:{kv}", {**self.common, **own}, self.processes)

    def _plain(self, gpu: str, http: int, discovery: int) -> Engine:
        """An engine without the connector, which announces itself to nobody."""
        engine = self._engine(Place(f"{self.kind.name}-plain", "combined", gpu), http, discovery)
        engine.variables |= {"PROXY_PORT": str(discovery)}
        return engine

    @property
    def reference(self) -> Engine:
        """Who is asked what plain vLLM writes."""
        return self.plain or next(engine for engine in self.engines.values() if engine.place.role == "decode")

    def of(self, role: str) -> list[Engine]:
        return [engine for engine in self.engines.values() if engine.place.role == role]

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def states(self) -> dict[str, str]:
        """The proxy's word on each engine, by role and number."""
        return {instance["name"]: instance["state"] for instance in self.stats()["instances"]}

    def ready(self) -> None:
        """Wait for every engine; fails with a log's end as soon as one has ended."""
        for engine in (*self.engines.values(), *([self.plain] if self.plain else [])):
            self.processes.wait_for(f"{engine.url}/health")
        self.all_serve()

    def serves(self, engine: Engine) -> bool:
        """Whether it answers, and gets requests."""
        try:
            return engine.answers() and self.states().get(engine.member) == "ready"
        except OSError:
            return False

    def all_serve(self, seconds: float = START_S) -> None:
        """Until the proxy counts every engine as ready."""
        until(lambda: all(map(self.serves, self.engines.values())), seconds, "all engines serve", period_s=0.3)

    def stop(self) -> None:
        self.processes.stop()

    def left(self) -> dict[str, float]:
        """What is in use although nothing runs: pages, KV blocks, requests."""
        found = {"proxy in flight": float(self.stats()["in_flight"])}
        states = tuple(
            f'state="{state}"' for state in ("gathering", "gathered", "moving", "landed", "loading", "limbo")
        )
        for name, engine in self.engines.items():
            if SIMULATED:
                with urllib.request.urlopen(f"{engine.url}/sim/books", timeout=10) as reply:
                    books = json.load(reply)
                found |= {f"{name} {what}": books[what] for what in ("held", "waiting") if what in books}
                continue
            nudge(engine.url)  # metrics come with steps
            found |= {f"{name} {key}": value for key, value in engine.series().items() if key.endswith(states)}
            for line in page_of(engine.url).splitlines():
                if line.startswith(
                    ("vllm:num_requests_running", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc")
                ):
                    found[f"{name} {line.partition('{')[0]}"] = float(line.rpartition(" ")[2])
        return {key: value for key, value in found.items() if value}

    def nothing_left(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.3)


def paths() -> dict[str, str]:
    """Where processes find pdstack's packages."""
    sources = [str(ROOT / module / "src") for module in MODULES]
    return {"PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])}


def nudge(url: str) -> None:
    body = {"model": SERVED, "prompt": [11, 12], "max_tokens": 1}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        reply.read()


@dataclass
class Got:
    """What one client was sent, and how it ended."""

    body: dict[str, Any]
    status: int = 0
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str = ""
    ended: bool = False
    broken: str = ""
    seconds: float = 0.0
    longest_pause: float = 0.0

    @property
    def whole(self) -> bool:
        """An answer with its end, and without an error."""
        return self.status == 200 and self.ended and not self.error and not self.broken and self.finish is not None

    @property
    def promised(self) -> bool:
        """Whether the client knows where it stands: a whole answer, an error status or an error event."""
        return self.whole or (self.status >= 400 and not self.broken) or bool(self.error)


class Clients:
    """Asks many at once; `written` counts tokens as they arrive."""

    def __init__(self, url: str, patience_s: float = 120.0) -> None:
        self.url, self.patience_s, self.written = url, patience_s, 0

    async def all(self, bodies: Sequence[dict[str, Any]]) -> list[Got]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
            return list(await asyncio.gather(*(self.one(session, body) for body in bodies)))

    async def one(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> Got:
        got, began = Got(body), time.monotonic()
        try:
            async with asyncio.timeout(self.patience_s):
                await self._one(session, got)
        except TimeoutError:
            got.broken = f"hangs: nothing more after {self.patience_s:g} s"
        except GONE as error:
            got.broken = f"{type(error).__name__}: {error}"
        got.seconds = time.monotonic() - began
        return got

    async def _one(self, session: aiohttp.ClientSession, got: Got) -> None:
        async with session.post(f"{self.url}/v1/completions", json={"model": SERVED, **got.body}) as response:
            got.status = response.status
            if not got.body.get("stream") or response.status != 200:
                self._document(got, await response.json(content_type=None))
                got.ended = True
                return
            last = time.monotonic()
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                got.longest_pause, last = max(got.longest_pause, time.monotonic() - last), time.monotonic()
                if line.strip() == b"data: [DONE]":
                    got.ended = True
                else:
                    self._document(got, json.loads(line[6:]))

    def _document(self, got: Got, document: dict[str, Any]) -> None:
        if "error" in document:
            got.error = str(document["error"].get("message", document["error"]))
        for choice in document.get("choices", ()):
            got.text += choice["text"]
            tokens = choice.get("token_ids") or []
            got.tokens += tokens
            got.finish = choice.get("finish_reason") or got.finish
            self.written += len(tokens) or bool(choice["text"])


def bodies_of(count: int, salt: int, tokens: int, *, streamed: bool = True) -> list[dict[str, Any]]:
    """Requests that are all different: greedy ones and, at odd numbers, ones with a seed of their own."""
    seeded = REHEARSE != "cpu"  # a seed ends vLLM 0.32's CPU engine: "CPU Generator does not use offset"
    found = []
    for number in range(count):
        draw = random.Random(1000 * salt + number)
        prompt = [draw.randrange(10, VOCABULARY) for _ in range(draw.choice((1, 15, 16, 17, 60, 150, 400, 700)))]
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": streamed}
        body |= {"temperature": 0.8, "seed": 77 + number} if seeded and number % 2 else {"temperature": 0}
        found.append({**body, "return_token_ids": True})
    return found


def apart(one: Got, other: Got) -> int | None:
    """Where two answers differ first; None if nowhere."""
    if one.tokens == other.tokens and one.text == other.text:
        return None
    pairs = zip(one.tokens, other.tokens, strict=False)
    return next((i for i, two in enumerate(pairs) if two[0] != two[1]), min(len(one.tokens), len(other.tokens)))


def record(name: str, **values: Any) -> None:
    """A line of results for whoever runs this by hand."""
    line = json.dumps({"what": name, "at": round(time.monotonic(), 1), **values})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "seen.jsonl").open("a") as file:
            file.write(line + "\n")


def make_model(folder: Path) -> Path:
    """A small model of random weights, unless GPU_MODEL has another one."""
    if os.environ.get("GPU_MODEL"):
        return Path(os.environ["GPU_MODEL"])
    path = folder / "model"
    if not SIMULATED:
        command = [sys.executable, "-m", "pd_engine.tiny_model", str(path), str(ROOT / "README.md")]
        command += ["4", "192"] if REHEARSE == "cpu" else ["8", "1024"]
        subprocess.run(command, check=True, env={**os.environ, **paths()})
    return path


class Fleet:
    """Every stand that the selected tests need, started at once."""

    def __init__(self, kinds: Iterable[Kind], folder: Path, scratch: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        model = make_model(scratch)
        self.stands = {kind.name: Stand(kind, model, folder, scratch) for kind in kinds}

    def stop(self) -> None:
        for stand in self.stands.values():
            stand.stop()
