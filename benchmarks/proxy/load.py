"""Streams over raw connections, counted and timed with as little work as Python allows; prints one JSON object.

`streams`: so many streams at once, each of so many chunks on a clock; counts and lags of the middle part only, between the two
moments that it prints as `begin` and `end`, so that the caller can read the proxy's CPU time at the same moments.
`requests`: so many connections, each with one request after the other, one chunk each, as fast as possible or at a rate.
"""

# ruff: noqa: INP001, T201  a script

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any, cast

import uvloop

from pd_contracts.latency import percentile

STAMP = re.compile(rb'"text":" ([0-9]+\.[0-9]{6})"')


class Tally:
    """What all streams saw; `open` is the part that counts."""

    def __init__(self) -> None:
        self.open = False
        self.chunks = 0
        self.reads = 0
        self.lags: list[float] = []
        self.finished = 0
        self.errors: list[str] = []


class Client(asyncio.Protocol):
    """One connection; `done` is called at the end of each answer, with a sentence if it was none."""

    def __init__(self, tally: Tally, done: Callable[["Client", str], None]) -> None:
        self._tally = tally
        self._done = done
        self._tail = b""
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> None:
        self._busy, self._tail = True, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = clock_gettime(CLOCK_MONOTONIC)
        if self._tally.open:
            found = STAMP.findall(data)
            self._tally.chunks += len(found)
            self._tally.reads += bool(found)
            self._tally.lags += [now - float(stamp) for stamp in found]
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._end(data[:200].decode("latin-1"))
            return
        self._tail = (self._tail + data)[-64:]
        if self._tail.endswith(b"0\r\n\r\n"):
            self._end("" if b"[DONE]" in self._tail else "no end mark")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._end(f"cut: {exc}")

    def _end(self, error: str) -> None:
        self._busy = False
        if error:
            self._tally.errors.append(error)
        else:
            self._tally.finished += 1
        self._done(self, error)


def request(prompt: str, chunks: int, options: argparse.Namespace) -> bytes:
    body = {"model": "mock", "prompt": prompt, "max_tokens": chunks, "stream": True, "temperature": 0}
    data = json.dumps(body).encode()
    head = f"POST {options.path} HTTP/1.1\r\nHost: 127.0.0.1:{options.port}\r\nContent-Type: application/json\r\nAccept: */*\r\n"
    return f"{head}User-Agent: bench\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def say(word: str, **values: Any) -> None:
    print(json.dumps({"word": word, **values}), flush=True)


async def connect(options: argparse.Namespace, tally: Tally, done: Callable[[Client, str], None]) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(tally, done), "127.0.0.1", options.port)
    return client


async def streams(options: argparse.Namespace) -> None:
    tally = Tally()
    over: asyncio.Queue[str] = asyncio.Queue()
    clients = []
    for start in range(0, options.count, 200):
        group = [
            connect(options, tally, lambda _, error: over.put_nowait(error))
            for _ in range(start, min(start + 200, options.count))
        ]
        clients += await asyncio.gather(*group)
    chunks = int((options.seconds + 4) * 1000 / options.pace)
    for number, client in enumerate(clients):
        client.ask(request(f"pace={options.pace} phase={number % options.pace}", chunks, options))
        if number % 64 == 63:
            await asyncio.sleep(0.02)
    await asyncio.sleep(2)
    tally.open = True
    say("begin")
    await asyncio.sleep(options.seconds)
    say("end")
    tally.open = False
    async with asyncio.timeout(60):
        for _ in clients:
            await over.get()
    lags = sorted(tally.lags) or [0.0]
    say(
        "result",
        chunks=tally.chunks,
        reads=tally.reads,
        finished=tally.finished,
        errors=len(tally.errors),
        first_errors=tally.errors[:3],
        lag_p50_ms=round((percentile(lags, 50) or 0.0) * 1e3, 3),
        lag_p99_ms=round((percentile(lags, 99) or 0.0) * 1e3, 3),
    )


async def requests(options: argparse.Namespace) -> None:
    """One after the other on each connection; with a rate, at that rate in all, whoever is free."""
    tally = Tally()
    payload = request("no clock", 1, options)
    running = True
    free: list[Client] = []

    def again(client: Client, error: str) -> None:
        if options.rate:
            free.append(client)
        elif running and not error:
            client.ask(payload)

    clients = [await connect(options, tally, again) for _ in range(options.count)]
    for client in clients:
        client.ask(payload)
    pacing = asyncio.create_task(pace(free, payload, options.rate)) if options.rate else None
    await asyncio.sleep(1)
    before = tally.finished
    say("begin")
    await asyncio.sleep(options.seconds)
    say("end")
    finished = tally.finished - before
    running = False
    if pacing is not None:
        pacing.cancel()
    await asyncio.sleep(0.2)
    say("result", requests=finished, errors=len(tally.errors), first_errors=tally.errors[:3])


async def pace(free: list[Client], payload: bytes, rate: float) -> None:
    """A request whenever its time has come and a connection is free."""
    start, number = clock_gettime(CLOCK_MONOTONIC), 0
    while True:
        number += 1
        await asyncio.sleep(max(0.0, start + number / rate - clock_gettime(CLOCK_MONOTONIC)))
        if free:
            free.pop(0).ask(payload)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["streams", "requests"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/completions")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--pace", type=int, default=20, help="ms between chunks of a stream")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second; 0: as fast as they are answered")
    chosen = parser.parse_args()
    uvloop.run(streams(chosen) if chosen.kind == "streams" else requests(chosen))
    sys.exit(0)
