"""Real vLLM engines behind a proxy of the test's own, and their answers in a form that can be compared with plain vLLM's."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
from support.handoff import CHAT, COMPLETIONS, shown, text_of
from support.proxy import Dealer, Reply, RunningProxy, running_proxy
from support.vllm_engines import SAMPLE, Engine

from pd_contracts.names import TIMING_HEADER, Connector
from pd_contracts.ping import Ping, PingType, sign_ping

KEY = "k" * 32
PING_S = 0.5
TEXT = SAMPLE.read_text()
# Slow machines: nobody is given up because others are busy.
PATIENT: dict[str, Any] = {
    "ping_key": KEY,
    "ping_ttl_s": 5.0,
    "health_timeout_s": 20.0,
    "decode_stall_timeout_s": 60.0,
    "queue_timeout_s": 300.0,
}


@contextlib.asynccontextmanager
async def fronted(
    engines: list[tuple[PingType, Engine]], **settings: Any
) -> AsyncIterator[tuple[RunningProxy, aiohttp.ClientSession]]:
    """A proxy to which these engines are announced as long as they live."""
    # An engine closes a connection that was idle for 5 s, perhaps just when a busy machine's test sends its next request.
    session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(600), connector=aiohttp.TCPConnector(force_close=True)
    )
    async with running_proxy(**(PATIENT | settings)) as proxy, session:
        tasks = [asyncio.create_task(_announce(proxy, engine, kind)) for kind, engine in engines]
        try:
            await proxy.stats_where(lambda stats: sum(i.state == "ready" for i in stats.instances) == len(tasks), 120)
            yield proxy, session
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _announce(proxy: RunningProxy, engine: Engine, kind: PingType) -> None:
    """A process that came in another one's place has another id, so the engine is looked up in each round."""
    async with Dealer(proxy.settings.proxy_port, engine.kv.encode()) as dealer:
        while True:
            now = engine.site.engines[engine.name]
            ping = Ping(
                type=kind,
                http_address=now.url.removeprefix("http://"),
                zmq_address=now.kv,
                connector=Connector.P2P,
                boot_id=str(id(now)),
                model="tiny",
                engine="vllm",
            )
            if await asyncio.to_thread(now.lives):
                await dealer.send(sign_ping(ping, KEY, time.time()))
            await asyncio.sleep(PING_S)


async def post(session: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any]) -> Reply:
    async with session.post(url + path, json=body, headers={TIMING_HEADER: "1"}) as response:
        return Reply(response.status, response.headers.copy(), await response.read())


def ways(tokens: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """One prompt as token ids, one as text, one as a chat; texts have about so many tokens."""
    generator = random.Random(tokens)
    yield COMPLETIONS, {"prompt": [generator.randrange(10, 1000) for _ in range(tokens)]}
    yield COMPLETIONS, {"prompt": TEXT[tokens : 4 * tokens]}
    yield CHAT, {"messages": [{"role": "user", "content": TEXT[2 * tokens : 5 * tokens]}]}


def said(reply: Reply) -> dict[str, Any]:
    """What an answer says. Streams are put together, because engines are free where they cut them."""
    found = shown(reply)
    if isinstance(found, dict):
        for choice in found["choices"]:
            choice["logprobs"] = _joined([choice.get("logprobs")])
            for call in choice.get("message", {}).get("tool_calls") or []:
                call["id"] = ""  # random before 0.32
        return found
    choices = [choice for event in found for choice in event["choices"]]
    return {
        "text": text_of(found),
        "tokens": [token for choice in choices for token in choice.get("token_ids") or []],
        "usage": [event["usage"] for event in found if event.get("usage")],
        "ends": [(one["finish_reason"], one.get("stop_reason")) for one in choices if one["finish_reason"]],
        "logprobs": _joined([choice.get("logprobs") for choice in choices]),
    }


def _joined(parts: list[Any]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for name, value in [item for part in parts if part for item in part.items() if isinstance(item[1], list)]:
        found.setdefault(name, []).extend(value)
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _rounded(value: Any) -> Any:
    """Sums in another order differ in the last digits."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
