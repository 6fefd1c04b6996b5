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
"""

import asyncio
import itertools
import json
import random
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
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
    """How many requests of what size: prompts of each of `lengths`, `repeats` of them in each order, `tokens` in an answer."""

    lengths: list[int]
    repeats: int
    tokens: int
    vocabulary: int


async def measure(pair: Pair, plan: Plan, proxies: Mapping[str, str], nixl: Pair | None) -> dict[int, list[Run]]:
    """All orders in turn, so many times for each length."""
    timeout = aiohttp.ClientTimeout(120)
    orders = ORDERS + (PROXIED if proxies else ()) + (NIXL if nixl else ())
    async with aiohttp.ClientSession(timeout=timeout) as session:
        client = Client(pair, session, plan.vocabulary, plan.tokens, spread=True, proxies=proxies, nixl=nixl)
        for order in orders * 2:
            await client.one(order, max(plan.lengths))
        found: dict[int, list[Run]] = {length: [] for length in plan.lengths}
        for repeat, length in itertools.product(range(plan.repeats), plan.lengths):
            first = repeat % len(orders)
            found[length] += [await client.one(order, length) for order in (*orders[first:], *orders[:first])]
    return found


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


def report(found: dict[int, list[Run]], noted: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Medians by length and order, as tables on the screen and as data."""
    data: dict[str, Any] = {}
    middle = statistics.median
    print("median ms: time to the first token (and above plain) / from token 1 to token 2 / a token after that")
    for length, runs in found.items():
        by_order = {
            order: [run for run in runs if run.order == order] for order in dict.fromkeys(run.order for run in runs)
        }
        plains = {
            order: middle(run.ttft for run in some) * 1000 for order, some in by_order.items() if "plain" in order
        }
        cells = []
        for order, some in by_order.items():
            ttft, second, tpot = (
                middle(getattr(run, what) for run in some) * 1000 for what in ("ttft", "second", "tpot")
            )
            spread = [round(run.ttft * 1000, 2) for run in some]
            data.setdefault(str(length), {})[order] = {"ttft": ttft, "second": second, "tpot": tpot, "ttfts": spread}
            plain = plains["proxied plain" if order in PROXIED else "nixl plain" if order in NIXL else "plain"]
            cells.append(f"{order} {ttft:.1f} ({ttft - plain:+.1f}) / {second:.1f} / {tpot:.2f}")
        print(f"{length:6d}  " + "  |  ".join(cells), flush=True)
    for length, runs in found.items():
        for order in ORDERS[1:]:
            parts = [stages(run, noted[run.key]) for run in runs if run.order == order]
            names = list(dict.fromkeys(name for part in parts for name in part))
            row = {name: middle(part[name] for part in parts if name in part) for name in names}
            data[str(length)][order]["stages"] = row
            print(
                f"{length:6d} {order:13s}" + "; ".join(f"{name} {value:.2f}" for name, value in row.items()), flush=True
            )
    return data


def run(
    pair: Pair,
    plan: Plan,
    *,
    out: Path | None,
    proxies: Mapping[str, str] | None = None,
    nixl: Pair | None = None,
) -> None:
    """Measure a pair that answers, and report."""
    found = asyncio.run(measure(pair, plan, proxies or {}, nixl))
    time.sleep(1)  # the engines write their traces every now and then
    data = report(found, events(pair))
    if out is not None:
        out.write_text(json.dumps(data, indent=1))
