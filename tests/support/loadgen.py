"""A server with known timing that says what it sent: the independent oracle of the load generator's tests.

Each prompt's model name chooses the behaviour, so one server plays all parts. Everything that went out is kept with the server's
own monotonic stamps, which are the same clock as the client's because both run on one host.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODELS = ("steady", "error500", "cut", "silent", "stream-error", "no-usage", "flaky")
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Served:
    """One generation request as the server saw it."""

    body: dict[str, Any]
    path: str
    headers: dict[str, str]
    received: float
    behaviour: str
    serial: int = 0
    tokens: list[float] = field(default_factory=list)

    def word(self, number: int) -> str:
        """The text of one token; no other request has the same."""
        return f" {self.serial}.{number}"

    @property
    def output_hash(self) -> str:
        """SHA-256 over the text that was sent."""
        return hashlib.sha256("".join(map(self.word, range(len(self.tokens)))).encode()).hexdigest()


@dataclass
class StampedServer:
    """Answers `/v1/completions` and `/v1/chat/completions` after `ttft` s, then one token every `tpot` s, to a schedule of its own."""

    ttft: float = 0.02
    tpot: float = 0.005
    models: Sequence[str] = MODELS
    owned_by: str = "tests"
    stats: dict[str, Any] | None = None
    deployment: dict[str, Any] | None = None
    boards: Sequence[dict[str, Any]] = ()
    served: list[Served] = field(default_factory=list)
    recordings: list[dict[str, Any]] = field(default_factory=list)
    ended_recordings: int = 0
    can_profile: bool = True
    profiles: list[tuple[str, float]] = field(default_factory=list)
    wanted_port: int = 0
    tls: ssl.SSLContext | None = None
    port: int = 0
    connections: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["StampedServer"]:
        """Serve from a thread until the block ends."""
        ready = threading.Event()
        thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield self
        finally:
            self.stop()
            thread.join(30)

    def stop(self) -> None:
        """Stop listening and drop every connection, as a crash would."""
        self._loop.call_soon_threadsafe(self._cancel_all)

    def of(self, behaviour: str) -> list[Served]:
        """The requests that were answered in this way."""
        return [one for one in self.served if one.behaviour == behaviour]

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError):  # that is how it is stopped
            self._loop.run_until_complete(self._serve(ready))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.wanted_port, backlog=512, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the server is being stopped
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        received = time.monotonic()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path in ("/v1/completions", "/v1/chat/completions"):
            return await self._generate(Served(json.loads(body), path, headers, received, ""), writer)
        self._plain(writer, *self._page(method, path, body))
        return headers.get("connection", "").lower() != "close"

    def _page(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        models = {"data": [{"id": name, "owned_by": self.owned_by} for name in self.models]}
        told = {"/v1/models": models, "/stats": self.stats, "/deployment": self.deployment, "/gpus": list(self.boards)}
        if told.get(path) is not None:
            return 200, json.dumps(told[path]).encode()
        if method == "POST" and path == "/recordings":
            self.recordings.append(json.loads(body))
            return 201, json.dumps({"id": "rec-1", "interval_s": 0.1}).encode()
        if method == "DELETE" and path == "/recordings/rec-1":
            self.ended_recordings += 1
            return 200, b'{"recorded": true}\n'
        if method == "POST" and path in ("/start_profile", "/stop_profile") and self.can_profile:
            self.profiles.append((path, time.monotonic()))
            return 200, b""
        return 404, b'{"error": {"message": "no such page"}}'

    @staticmethod
    def _plain(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def _generate(self, one: Served, writer: asyncio.StreamWriter) -> bool:
        behaviour = one.body["model"]
        if behaviour == "flaky":
            behaviour = ("steady", "error500", "cut")[len(self.served) % 3]
        one.behaviour, one.serial = behaviour, len(self.served)
        self.served.append(one)
        if behaviour == "error500":
            self._plain(writer, 500, b'{"error": {"message": "the engine is on fire", "code": 500}}')
            return True
        if behaviour == "silent":
            await asyncio.sleep(3600)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        return await self._stream(one, writer)

    async def _stream(self, one: Served, writer: asyncio.StreamWriter) -> bool:
        count = int(one.body["max_tokens"])
        if "chat" in one.path:
            write_event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for number in range(count):
            await sleep_until(one.received + self.ttft + number * self.tpot)
            if writer.is_closing():
                return False  # the client left
            one.tokens.append(time.monotonic())
            write_event(writer, _token(one, number, last=number == count - 1))
            if one.behaviour == "cut" and number == count // 2:
                return False
            if one.behaviour == "stream-error" and number == count // 2:
                write_event(writer, {"error": {"message": "decode lost the KV", "code": 502}})
                writer.write(b"0\r\n\r\n")
                return True
        self._end(one, writer)
        return True

    @staticmethod
    def _end(one: Served, writer: asyncio.StreamWriter) -> None:
        if one.behaviour != "no-usage":
            prompt = one.body.get("prompt")
            length = len(prompt) if isinstance(prompt, list) else 7
            write_event(
                writer, {"choices": [], "usage": {"prompt_tokens": length, "completion_tokens": len(one.tokens)}}
            )
        if one.headers.get("x-pd-timing") == "1":
            stages = {
                "queue": 1.0,
                "prefill": 2.0,
                "kv_and_first_decode": 3.0,
                "decode": 4.0,
                "decode_instance": "decode-0",
            }
            chunk(writer, f": pd-timing {json.dumps(stages)}\n\n".encode())
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def _token(one: Served, number: int, *, last: bool) -> dict[str, Any]:
    finish = "length" if last else None
    if "chat" in one.path:
        return {"choices": [{"delta": {"content": one.word(number)}, "finish_reason": finish}]}
    ids = {"token_ids": [number + 100]} if one.body.get("return_token_ids") else {}
    return {"choices": [{"text": one.word(number), "finish_reason": finish, **ids}]}


def write_event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    """Send one event as one HTTP chunk."""
    chunk(writer, f"data: {json.dumps(data)}\n\n".encode())


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def sleep_until(moment: float) -> None:
    """Sleep to a moment of the monotonic clock."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def environment(**variables: str) -> dict[str, str]:
    """The process's environment without the load generator's own variables."""
    ours = ("LOADGEN_", "MODEL", "HTTP_PROXY_PORT", "RESULTS_DIR", "LOCUST_")
    return {**{key: value for key, value in os.environ.items() if not key.startswith(ours)}, **variables}


def command(url: str, out: Path, **options: object) -> list[str]:
    """`pd-loadgen run` with short defaults; a keyword is an option, True a switch."""
    chosen: dict[str, object] = {
        "model": "steady",
        "input_tokens": 16,
        "output_tokens": 8,
        **({} if "trace" in options else {"rate": 20}),
        "duration": 1,
        "seed": 3,
        "ready_timeout": 2,
        "lag_limit_ms": 5000,  # the machine may be busy; what lag does is tested apart
        **options,
    }
    words = [sys.executable, "-m", "pd_loadgen", "run", "--url", url, "--out", str(out)]
    for name, value in chosen.items():
        switch = "--" + name.replace("_", "-")
        words += [switch] if value is True else [switch, *map(str, value if isinstance(value, list) else [value])]
    return words


def run(url: str, out: Path, cwd: Path | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    words = command(url, out, **options)
    return subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, env=environment(), cwd=cwd or out.parent
    )


def start(url: str, out: Path, **options: object) -> subprocess.Popen[str]:
    """Start the command and leave it running; the caller ends it."""
    return subprocess.Popen(
        command(url, out, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=out.parent,
    )
