# ruff: noqa: INP001, T201 - scripts, not a package
"""The cost of disaggregation for one stream: time to the first and second token in each order of requests, against plain vLLM on the same GPU, by stage.

The orders, in turn within each repetition, so that a change of the machine's speed affects all of them; each repetition begins with another one:

plain         one engine does all: each of the two in turn, asked as an ordinary one, because two equal processes can differ by 2 ms
official      prefill, then decode
decode-first  both are asked at once
hand-off      the client has prefill's token when prefill answers; decode is asked then
announced     the same, but decode is asked at once; prefill's token follows from engine to engine
late          as official, but prefill does not know where the KV goes until decode asks for it
proxied plain and proxied: through pdstack's proxy, to plain vLLM, and to prefill and decode as the proxy's default settings have it (with --proxy)
nixl plain and nixl: two more engines with vLLM's own NixlConnector, each in turn as an ordinary one, and prefill, then decode (with --nixl)

A second pair with other settings of the connector (with --against) is asked right after the first one in each order, or before it in every other repetition.
"""

import asyncio
import itertools
import json
import random
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from engines import SERVED, Pair

ORDERS = ("plain", "official", "decode-first", "hand-off", "announced", "late")
PROXIED = ("proxied plain", "proxied")
NIXL = ("nixl plain", "nixl")
# What NixlConnector's prefill is asked with; its answer has what decode needs.
NIXL_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PLACE_HOLDER = 11


@dataclass
class Run:
    """One request: monotonic times at the client, and its key."""

    order: str
    key: str = ""
    sent: float = 0.0
    stamps: list[float] = field(default_factory=list)
    prefill_sent: float = 0.0
    prefill_answered: float = 0.0

    @property
    def ttft(self) -> float:
        return self.stamps[0] - self.sent

    @property
    def second(self) -> float:
        return self.stamps[1] - self.stamps[0]

    @property
    def tpot(self) -> float:
        return (self.stamps[-1] - self.stamps[1]) / max(1, len(self.stamps) - 2)


class Client:
    """Asks a pair of engines."""

    def __init__(
        self,
        pair: Pair,
        session: aiohttp.ClientSession,
        vocabulary: int,
        tokens: int,
        *,
        spread: bool = False,
        proxies: Mapping[str, str] | None = None,
        nixl: Pair | None = None,
    ) -> None:
        """`spread`: plain requests go to both engines in turn. `proxies` are the addresses of `Front`'s two, by kind."""
        self._proxies = proxies or {}
        self._nixl_pair, self._nixl_engines = nixl, itertools.cycle((0, 1))
        self._pair, self._session, self._vocabulary, self._tokens = pair, session, vocabulary, tokens
        self._random = random.Random(1)
        self._plain_engines = itertools.cycle((0, 1) if spread else (1,))

    async def one(self, order: str, length: int) -> Run:
        prompt = [self._random.randrange(20, self._vocabulary) for _ in range(length)]
        run = Run(order, uuid.uuid4().hex, time.monotonic())
        await getattr(self, "_" + order.replace("-", "_").replace(" ", "_"))(run, prompt)
        return run

    async def _plain(self, run: Run, prompt: list[int]) -> None:
        await self._stream(run, prompt, None, self._tokens, engine=next(self._plain_engines))

    async def _official(self, run: Run, prompt: list[int]) -> None:
        await self._prefill(run, prompt, first="kv")
        await self._stream(run, prompt, self._from(run), self._tokens)

    async def _late(self, run: Run, prompt: list[int]) -> None:
        await self._prefill(run, prompt, named=False, first="kv")
        await self._stream(run, prompt, self._from(run), self._tokens)

    async def _decode_first(self, run: Run, prompt: list[int]) -> None:
        await asyncio.gather(
            self._prefill(run, prompt, first="kv"), self._stream(run, prompt, self._from(run), self._tokens)
        )

    async def _hand_off(self, run: Run, prompt: list[int]) -> None:
        first = await self._prefill(run, prompt)
        run.stamps.append(run.prefill_answered)
        known = self._from(run) | {"tokens": len(prompt)}
        await self._stream(run, [*prompt, *first], known, self._tokens - 1)

    async def _announced(self, run: Run, prompt: list[int]) -> None:
        follows = self._from(run) | {"tokens": len(prompt), "token": "follows"}
        await asyncio.gather(
            self._prefill(run, prompt), self._stream(run, [*prompt, PLACE_HOLDER], follows, self._tokens - 1)
        )
        run.stamps.insert(0, run.prefill_answered)

    async def _proxied_plain(self, run: Run, prompt: list[int]) -> None:
        await self._through("plain", run, prompt)

    async def _proxied(self, run: Run, prompt: list[int]) -> None:
        await self._through("disagg", run, prompt)

    async def _nixl_plain(self, run: Run, prompt: list[int]) -> None:
        await self._read(run, self._nixl_url(next(self._nixl_engines)), self._body(prompt, self._tokens, None))

    async def _nixl(self, run: Run, prompt: list[int]) -> None:
        body = self._body(prompt, 1, None) | {"kv_transfer_params": NIXL_PREFILL}
        run.prefill_sent = time.monotonic()
        async with self._session.post(f"{self._nixl_url(0)}/v1/completions", json=body) as reply:
            where = (await reply.json())["kv_transfer_params"]
        run.prefill_answered = time.monotonic()
        body = self._body(prompt, self._tokens, None) | {"kv_transfer_params": where}
        await self._read(run, self._nixl_url(1), body)

    def _nixl_url(self, index: int) -> str:
        if self._nixl_pair is None:
            msg = "there is no pair with NixlConnector"
            raise ValueError(msg)
        address: str = self._nixl_pair.url(index)
        return address

    async def _through(self, kind: str, run: Run, prompt: list[int]) -> None:
        await self._read(run, self._proxies[kind], self._body(prompt, self._tokens, None))

    def _from(self, run: Run) -> dict[str, Any]:
        return {"key": run.key, "from": self._pair.kv(0)}

    def _body(self, prompt: list[int], tokens: int, pd: dict[str, Any] | None) -> dict[str, Any]:
        body = {"model": SERVED, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return body | ({"kv_transfer_params": {"pd": pd}} if pd else {})

    async def _prefill(self, run: Run, prompt: list[int], *, named: bool = True, first: str = "") -> list[int]:
        """`first` is "kv" if the client waits for decode."""
        pd = {"key": run.key, **({"to": [self._pair.kv(1)]} if named else {}), **({"first": first} if first else {})}
        body = self._body(prompt, 1, pd) | {"return_token_ids": True}
        run.prefill_sent = time.monotonic()
        async with self._session.post(f"{self._pair.url(0)}/v1/completions", json=body) as reply:
            found = await reply.json()
        run.prefill_answered = time.monotonic()
        tokens: list[int] = found["choices"][0]["token_ids"]
        return tokens

    async def _stream(
        self, run: Run, prompt: list[int], pd: dict[str, Any] | None, tokens: int, engine: int = 1
    ) -> None:
        await self._read(run, self._pair.url(engine), self._body(prompt, tokens, pd))

    async def _read(self, run: Run, url: str, body: dict[str, Any]) -> None:
        async with self._session.post(f"{url}/v1/completions", json=body | {"stream": True}) as reply:
            if reply.status != 200:
                raise RuntimeError(await reply.text())
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    run.stamps.append(time.monotonic())


@dataclass(frozen=True)
class Plan:
    """How many requests of what size: prompts of each of `lengths`, `tokens` in an answer; `repeats` of them in each order, or fewer if the monotonic clock reaches `end`."""

    orders: Sequence[str]
    lengths: Sequence[int]
    repeats: int
    end: float
    tokens: int
    vocabulary: int


@dataclass(frozen=True)
class Side:
    """A pair that answers, the addresses of the proxies in front of it by kind, and NIXL's pair beside it."""

    pair: Pair
    proxies: Mapping[str, str]
    nixl: Pair | None = None


Found = dict[str, dict[int, list[Run]]]


def turn(orders: Sequence[str], sides: Mapping[str, Side], repeat: int) -> list[tuple[str, str]]:
    """What a repetition asks, and whom."""
    first = repeat % len(orders)
    names = list(sides)[:: -1 if repeat % 2 else 1]
    pairs = itertools.product((*orders[first:], *orders[:first]), names)
    return [(order, name) for order, name in pairs if order not in NIXL or sides[name].nixl is not None]


async def measure(sides: Mapping[str, Side], plan: Plan, found: Found) -> None:
    """All orders in turn, so many times for each length; `found` is by side and length."""
    timeout = aiohttp.ClientTimeout(120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        clients = {
            name: Client(
                side.pair, session, plan.vocabulary, plan.tokens, spread=True, proxies=side.proxies, nixl=side.nixl
            )
            for name, side in sides.items()
        }
        for order, name in turn(plan.orders, sides, 0) * 2:
            await clients[name].one(order, max(plan.lengths))
        for repeat in range(plan.repeats):
            if time.monotonic() > plan.end:
                break
            for length, (order, name) in itertools.product(plan.lengths, turn(plan.orders, sides, repeat)):
                found[name][length].append(await clients[name].one(order, length))


def events(pair: Pair) -> dict[str, dict[str, list[float]]]:
    """The engines' traces: times of each event by the router's key."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in pair.traces():
        for line in path.read_text().splitlines() if path.exists() else ():
            at, event, key = line.split(" ", 2)
            found[key.rpartition(".")[0]][event].append(float(at))
    return found


def stages(run: Run, noted: dict[str, list[float]]) -> dict[str, float]:
    """Milliseconds between one event of a request and the next."""
    last = {name: max(times) for name, times in noted.items()}
    launched = last.get("written", last.get("launched"))  # up to the last layer, or the whole step
    decoded = run.stamps[1] if run.order in ("hand-off", "announced") else run.stamps[0]
    marks = [
        ("prefill hears of it", run.prefill_sent, last.get("begin")),
        ("queue and launch", last.get("begin"), launched),
        ("computed, gathered, moved", launched, last.get("moved")),
        ("prefill's token sampled after the move", last.get("moved"), last.get("ended")),
        ("token at the client", last.get("ended"), run.prefill_answered),
        ("decode hears of the part", last.get("moved"), last.get("landed")),
        ("complete, with its token", last.get("landed"), last.get("ready")),
        ("prefill announces it before the end", last.get("foreseen"), launched),
        ("decode hears that it is near", last.get("foreseen"), last.get("near")),
        ("the scheduler notices", last.get("near", last.get("ready")), last.get("scheduled")),
        ("vLLM prepares the step", last.get("scheduled"), last.get("prepared")),
        ("the step waits for KV", last.get("prepared"), last.get("ready") if "near" in last else None),
        ("scatter alone launched", max(last.get("prepared", 0), last.get("ready", 0)) or None, last.get("scattered")),
        ("step, and its token at the client", last.get("scattered"), decoded),
        ("in all, from complete KV to the token at the client", last.get("ready"), decoded),
    ]
    return {name: (end - begin) * 1000 for name, begin, end in marks if begin is not None and end is not None}


def numbers(found: dict[int, list[Run]], noted: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """By length and order: medians, the ninth of ten, each request's, and medians of the stages, all in ms."""
    data: dict[str, Any] = {}
    for length, runs in found.items():
        for order in dict.fromkeys(run.order for run in runs):
            some = [run for run in runs if run.order == order]
            ttfts, seconds, tpots = ([getattr(run, what) * 1000 for run in some] for what in ("ttft", "second", "tpot"))
            parts = [stages(run, noted[run.key]) for run in some] if order in ORDERS[1:] else []
            names = dict.fromkeys(name for part in parts for name in part)
            data.setdefault(str(length), {})[order] = {
                "ttft": statistics.median(ttfts),
                "ttft p90": p90(ttfts),
                "second": statistics.median(seconds),
                "second p90": p90(seconds),
                "tpot": statistics.median(tpots),
                "ttfts": [round(ttft, 2) for ttft in ttfts],
                "seconds": [round(second, 2) for second in seconds],
                "stages": {name: statistics.median(part[name] for part in parts if name in part) for name in names},
            }
    return data


def p90(values: list[float]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]


def plain_of(order: str) -> str:
    """The order with which one is compared."""
    return "proxied plain" if order in PROXIED else "nixl plain" if order in NIXL else "plain"


def show(data: dict[str, dict[str, Any]]) -> None:
    """All sides' numbers on the screen, the stages first."""
    rows = [
        (length, order, name, row)
        for length in next(iter(data.values()))
        for order in dict.fromkeys(order for side in data.values() for order in side.get(length, {}))
        for name, side in data.items()
        if (row := side.get(length, {}).get(order))
    ]
    for length, order, name, row in rows:
        if row["stages"]:
            listed = "; ".join(f"{stage} {value:.2f}" for stage, value in row["stages"].items())
            print(f"{length:>6} {order:13} {name:7} {listed}")
    print("ms                             requests  token 1   above plain    p90   1 to 2    p90   later tokens")
    for length, order, name, row in rows:
        plain = data[name][length].get(plain_of(order))
        above = f"{row['ttft'] - plain['ttft']:+.1f}" if plain else "-"
        print(
            f"{length:>6} {order:13} {name:7} {len(row['ttfts']):9d} {row['ttft']:9.1f} {above:>11} {row['ttft p90']:8.1f}"
            f" {row['second']:8.1f} {row['second p90']:6.1f} {row['tpot']:10.2f}",
            flush=True,
        )


def run(sides: Mapping[str, Side], plan: Plan, *, out: Path | None) -> None:
    """Measure pairs that answer, and report what was measured, even if a request fails. The first side's file is price.json."""
    found: Found = {name: {length: [] for length in plan.lengths} for name in sides}
    try:
        asyncio.run(measure(sides, plan, found))
    finally:
        time.sleep(1)  # the engines write their traces every now and then
        data = {name: numbers(found[name], events(side.pair)) for name, side in sides.items()}
        show(data)
        for index, (name, one) in enumerate(data.items()):
            if out is not None:
                (out / (f"price-{name}.json" if index else "price.json")).write_text(json.dumps(one, indent=1))
