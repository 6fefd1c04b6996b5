"""What other load generators do, with their HTTP stacks: aiohttp as `vllm bench serve` uses it, httpx as GuideLLM does.

Arguments: client, url, streams, chunks. Prints JSON: `{serial: [monotonic seconds at which each chunk was processed, …]}`.
"""

# ruff: noqa: INP001  a script

import asyncio
import importlib.util
import json
import sys
import time
from collections import defaultdict


class Seen:
    """Reads events, and stamps each when it is processed, as these tools do."""

    def __init__(self) -> None:
        self.stamps: dict[str, list[float]] = defaultdict(list)

    def event(self, data: str) -> None:
        if data != "[DONE]" and (choices := json.loads(data)["choices"]):
            self.stamps[choices[0]["text"].split(".")[0].strip()].append(time.monotonic())


def body(chunks: int) -> dict[str, object]:
    return {"model": "m", "prompt": "x", "max_tokens": chunks, "stream": True}


async def aiohttp_client(url: str, streams: int, chunks: int) -> Seen:
    """One session, `iter_any`, split at empty lines."""
    import aiohttp  # noqa: PLC0415  only the chosen client's library need be there

    seen = Seen()

    async def one(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{url}/v1/completions", json=body(chunks)) as response:
            rest = b""
            async for data in response.content.iter_any():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    seen.event(event.decode().removeprefix("data: "))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        await asyncio.gather(*(one(session) for _ in range(streams)))
    return seen


async def httpx_client(url: str, streams: int, chunks: int) -> Seen:
    import httpx  # noqa: PLC0415  only the chosen client's library need be there

    seen = Seen()

    async def one(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", f"{url}/v1/completions", json=body(chunks)) as response:
            async for line in response.aiter_lines():
                if line:
                    seen.event(line.removeprefix("data: "))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(one(client) for _ in range(streams)))
    return seen


def main() -> None:
    clients = {"aiohttp": aiohttp_client, "httpx": httpx_client}
    _, name, url, streams, chunks = sys.argv
    if name == "httpx" and importlib.util.find_spec("uvloop"):
        import uvloop  # noqa: PLC0415  GuideLLM runs on it where it is there, vLLM's benchmark does not

        seen = uvloop.run(clients[name](url, int(streams), int(chunks)))
    else:
        seen = asyncio.run(clients[name](url, int(streams), int(chunks)))
    sys.stdout.write(json.dumps(seen.stamps))


if __name__ == "__main__":
    main()
