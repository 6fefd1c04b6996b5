"""A proxy under test and engines that it can talk to: real sockets, real ZMQ, no model.

`FakeEngine` pings like vLLM, answers like vLLM (a word a token), records every request with what became of it, and
misbehaves as a test tells it to.
"""

import asyncio
import contextlib
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio
from aiohttp import web
from multidict import CIMultiDict
from support.aio import until

from pd_contracts import sse
from pd_contracts.free_ports import free_ports
from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, PingType, ping_type, sign_ping
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_proxy.processes.server import serve
from pd_proxy.settings import Settings

MODEL = "fake-model"
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "one two three", "max_tokens": 4}
STREAM = TEXT | {"stream": True}
TICK_S = 0.004
PING_S = 0.1
# Engines write without pause; this is what a client may have to read past to find what it looks for.
BUFFER_BYTES = 64 * 1024 * 1024


def whole_and_streamed(body: dict[str, Any]) -> pytest.MarkDecorator:
    """Run a test twice: with the answer in one piece, and as a stream."""
    return pytest.mark.parametrize("body", [body, body | {"stream": True}], ids=["whole", "stream"])


BODIES = whole_and_streamed(TEXT)


@dataclass(eq=False)
class Call:
    """One request for tokens at an engine."""

    path: str
    headers: CIMultiDict[str]
    body: dict[str, Any]  # empty if it is no JSON
    raw: bytes = b""
    aborted: bool = False
    finished: bool = False

    @property
    def engine_id(self) -> str:
        """The id that the proxy gave it, where vLLM looks for it."""
        engine_id: str = self.body["request_id"] if self.is_response else self.headers["X-Request-Id"]
        return engine_id

    @property
    def is_response(self) -> bool:
        """Whether it is one for `/v1/responses`."""
        return self.path.endswith("/responses")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = Callable[["FakeEngine", Call, web.Request], Awaitable[web.StreamResponse]]


@dataclass(eq=False)
class FakeEngine:
    """One engine; `answer` is how it serves, `gate` holds its answers back while it is cleared."""

    role: Role
    connector: Connector | None = None
    boot_id: str = "boot-1"
    models: list[str] = field(default_factory=lambda: [MODEL])
    answer: Answer | None = None
    health: int = 200
    health_answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    pings: bool = True
    key: str = ""
    api_key: str = ""  # the key that its clients must send
    tls: ssl.SSLContext | None = None
    deployment: str = ""
    version: str = ""  # what `/version` says; nothing if it is empty
    bare: bool = False
    adapters: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    other_gets: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    clock: float = 0.0  # how far its host's clock is off, s
    http_port: int = 0
    kv_port: int = 0

    def __post_init__(self) -> None:
        self.http_port, self.kv_port = free_ports(2)
        self.gate.set()

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def zmq_address(self) -> str:
        return f"127.0.0.1:{self.kv_port}"

    def ping(self) -> Ping:
        """What it announces; `bare`: no more than vLLM's own pings say."""
        if self.bare:
            return Ping(PingType[self.role.name], self.http_address, self.zmq_address)
        ping = Ping(
            type=ping_type(self.role, moves_kv=self.connector is not None),
            http_address=self.http_address,
            zmq_address=self.zmq_address,
            connector=self.connector,
            boot_id=self.boot_id,
            engine="fake",
            deployment=self.deployment,
        )
        return msgspec.structs.replace(ping, **self.told)

    def announcement(self) -> bytes:
        """What it sends: signed if there is a key."""
        return sign_ping(self.ping(), "" if self.bare else self.key, time.time() + self.clock, time.monotonic())

    @contextlib.asynccontextmanager
    async def running(self, proxy_port: int) -> AsyncIterator[Self]:
        app = web.Application(client_max_size=2**30, middlewares=[self._check_key])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/{_:(start|stop)_profile}", self._no_profiler)
        app.router.add_post("/{path:.*}", self._generate)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.http_port, ssl_context=self.tls).start()
        pinger = asyncio.create_task(self._ping_for_ever(proxy_port))
        try:
            yield self
        finally:
            self.gate.set()
            pinger.cancel()
            await asyncio.gather(pinger, return_exceptions=True)
            await runner.cleanup()

    async def _ping_for_ever(self, proxy_port: int) -> None:
        while True:
            identity = self.zmq_address
            async with Dealer(proxy_port, identity.encode()) as dealer:
                while self.zmq_address == identity:
                    if self.pings:
                        await dealer.send(self.announcement())
                    await asyncio.sleep(PING_S)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        self.other_gets.append(request.path)
        if self.health_answer is not None:
            return await self.health_answer(request)
        return web.Response(status=self.health)

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": self.version}) if self.version else web.Response(status=404)

    async def _models(self, request: web.Request) -> web.Response:
        self.other_gets.append(request.path)
        data = [
            {"id": model, "object": "model", "owned_by": "fake", "root": f"/models/{model}"} for model in self.models
        ]
        data += [
            {"id": name, "object": "model", "root": f"/loras/{name}", "parent": self.models[0]}
            for name in self.adapters
        ]
        return web.json_response({"object": "list", "data": data})

    @web.middleware
    async def _check_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """As vLLM with --api-key: what is not under /v1 (or /v2, /inference) needs none."""
        guarded = self.api_key and request.path.startswith(("/v1", "/v2", "/inference"))
        if guarded and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def _no_profiler(self, _request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = await request.json() if request.content_type != "multipart/form-data" else {}
        call = Call(request.path, request.headers.copy(), body, raw)
        self.calls.append(call)
        try:
            response = await (self.answer or generate)(self, call, request)
        except (asyncio.CancelledError, ConnectionResetError):
            call.aborted = True
            raise
        call.finished = True
        return response


class Dealer:
    """A ZMQ DEALER to the proxy's port for pings."""

    def __init__(self, port: int, identity: bytes) -> None:
        self._port = port
        self._identity = identity

    async def __aenter__(self) -> zmq.asyncio.Socket:
        self._context = zmq.asyncio.Context()
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)
        dealer.setsockopt(zmq.LINGER, 500)
        dealer.connect(f"tcp://127.0.0.1:{self._port}")
        self._dealer = dealer
        return dealer

    async def __aexit__(self, *_: object) -> None:
        self._dealer.close()
        self._context.term()


def document(engine: FakeEngine, call: Call, tokens: int) -> dict[str, Any]:
    """A whole answer, as vLLM writes it."""
    chat = call.path.endswith("chat/completions")
    texts = " ".join(f"t{i}" for i in range(tokens))
    params: dict[str, Any] | None = None
    if engine.connector is Connector.NIXL and engine.role is Role.PREFILL:
        params = {"do_remote_prefill": True, "remote_host": "10.1.2.3", "remote_block_ids": [1, 2], "tp_size": 1}
    if engine.connector is Connector.P2P and engine.role is not Role.DECODE and "kv_transfer_params" in call.body:
        params = {"pd": {"key": call.body["kv_transfer_params"]["pd"]["key"], "blocks": 1, "tokens": 3}}
    if call.is_response:
        return {
            "id": call.engine_id,
            "object": "response",
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": texts}]}],
            "usage": {"input_tokens": 3, "output_tokens": tokens, "total_tokens": 3 + tokens},
            "kv_transfer_params": params,
        }
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    choice |= {"message": {"role": "assistant", "content": texts}} if chat else {"text": texts}
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{call.engine_id}",
        "object": "chat.completion" if chat else "text_completion",
        "model": MODEL,
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens},
        "kv_transfer_params": params,
    }


def chunk(call: Call, text: str) -> bytes:
    """One event of a stream, as vLLM writes it."""
    if call.is_response:
        return typed("response.output_text.delta", delta=text, item_id="msg_1", sequence_number=2)
    chat = call.path.endswith("chat/completions")
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    choice |= {"delta": {"content": text}} if chat else {"text": text}
    name = "chatcmpl" if chat else "cmpl"
    return sse.encode_event(json.dumps({"id": f"{name}-{call.engine_id}", "model": MODEL, "choices": [choice]}))


async def generate(engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
    """The right answer: `max_tokens` words, as a stream that lets others run between chunks, or in one piece."""
    limits = ("max_output_tokens", "max_completion_tokens", "max_tokens")
    tokens = next((call.body[name] for name in limits if call.body.get(name)), 16)
    if not call.body.get("stream"):
        await engine.gate.wait()
        return web.json_response(document(engine, call, tokens))
    response = await start_stream(request)
    if call.is_response:
        await response.write(opening(call))
    for number in range(tokens):
        await engine.gate.wait()
        await response.write(chunk(call, f"t{number} "))
        await asyncio.sleep(0)
    last = typed("response.completed", response=document(engine, call, tokens), sequence_number=3 + tokens)
    await response.write(last if call.is_response else sse.encode_event(sse.DONE))
    return response


def typed(kind: str, **fields: Any) -> bytes:
    """One event of a response's stream."""
    return sse.encode_event(json.dumps({"type": kind, **fields}), kind)


def opening(call: Call) -> bytes:
    """What vLLM says of a response before its engine knows of it."""
    response = {"id": call.engine_id, "object": "response", "status": "in_progress", "output": []}
    kinds = ("response.created", "response.in_progress")
    return b"".join(typed(kind, response=response, sequence_number=number) for number, kind in enumerate(kinds))


async def start_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def failing(
    status: int, body: bytes = b"", content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Answer:
    """An answer with this status and body."""

    async def answer(_engine: FakeEngine, _call: Call, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=content_type, headers=headers)

    return answer


async def hang_up(_engine: FakeEngine, _call: Call, request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@dataclass
class ClosesKept:
    """An engine whose server, while `closes`, closes a kept connection just when the next request arrives on it; once."""

    answer: Answer | None = None
    closes: bool = False
    _met: list[asyncio.Transport] = field(default_factory=list)

    async def __call__(self, engine: FakeEngine, call: Call, request: web.Request) -> web.StreamResponse:
        """As `FakeEngine.answer`."""
        transport = request.transport
        if transport is None or (self.closes and transport in self._met):
            self.closes = False
            return await hang_up(engine, call, request)
        self._met.append(transport)
        return await (self.answer or generate)(engine, call, request)


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, which must be complete."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def items(self) -> list[sse.Event | sse.Comment]:
        """The body as server-sent events and comments."""
        decoder = sse.Decoder()
        items = list(decoder.feed(self.body))
        assert not decoder.incomplete
        return items

    @property
    def events(self) -> list[str]:
        return [item.data for item in self.items if isinstance(item, sse.Event)]


@dataclass
class RunningProxy:
    """A proxy that serves on free ports, and a client of it."""

    settings: Settings
    session: aiohttp.ClientSession
    engines: contextlib.AsyncExitStack
    shutdown: asyncio.Event
    serving: "asyncio.Task[None]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.http_proxy_port}"

    async def restart(self) -> None:
        """Shut it down as SIGTERM does, and start another one on the same ports, which knows nothing."""
        self.shutdown.set()
        await self.serving
        self.shutdown = asyncio.Event()
        self.serving = asyncio.create_task(serve(self.settings, self.shutdown))
        await listening(self.settings.http_proxy_port, self.serving)

    async def engine(self, role: Role, connector: Connector | None = Connector.P2P_NCCL, **fields: Any) -> FakeEngine:
        """Start an engine and wait until the proxy has admitted it."""
        engine = await self.start(FakeEngine(role, None if role is Role.COMBINED else connector, **fields))
        await self.state_of(engine, "ready")
        return engine

    async def pair(self, connector: Connector = Connector.P2P_NCCL) -> tuple[FakeEngine, FakeEngine]:
        """A prefill and a decode, both admitted."""
        prefill = await self.engine(Role.PREFILL, connector)
        return prefill, await self.engine(Role.DECODE, connector)

    async def start(self, engine: FakeEngine) -> FakeEngine:
        """Start an engine that may never be admitted; it belongs to the proxy's deployment."""
        engine.key = engine.key or self.settings.ping_key
        engine.deployment = engine.deployment or self.settings.deployment
        return await self.engines.enter_async_context(engine.running(self.settings.proxy_port))

    async def get(self, path: str) -> Reply:
        async with self.session.get(self.url + path) as response:
            return Reply(response.status, response.headers.copy(), await response.read())

    async def post(self, body: Any, path: str = "/v1/completions", **headers: str) -> Reply:
        """POST a body; anything but bytes is written as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data, headers=headers) as response:
            return Reply(response.status, response.headers.copy(), await response.read())

    async def stats(self) -> ProxyStats:
        """The answer of `/stats`."""
        return msgspec.json.decode((await self.get("/stats")).body, type=ProxyStats)

    async def stats_where(self, condition: Callable[[ProxyStats], object], timeout_s: float = 30.0) -> ProxyStats:
        """Wait until /stats is as it should be."""
        async with asyncio.timeout(timeout_s):
            while True:
                stats = await self.stats()
                if condition(stats):
                    return stats
                await asyncio.sleep(TICK_S)

    async def settled(self) -> ProxyStats:
        """Wait until no client waits and no engine has a request any more."""
        return await self.stats_where(lambda s: not s.in_flight and not any(i.in_flight for i in s.instances))

    async def paid(self) -> None:
        """Wait until no KV is owed to any decode, and then as `settled`."""
        async with asyncio.timeout(30):
            while b"pd_proxy_kv_owed 0.0" not in (await self.get("/metrics")).body:  # noqa: ASYNC110
                await asyncio.sleep(TICK_S)
        await self.settled()

    async def instance(self, engine: FakeEngine) -> InstanceStats | None:
        """What /stats says about an engine; engines of one role are told apart by their boot id."""
        found = [i for i in (await self.stats()).instances if i.role is engine.role and i.boot_id == engine.boot_id]
        return found[0] if found else None

    async def checked(self, engine: FakeEngine) -> InstanceStats:
        """Wait until an engine's health has been checked once."""
        await until(lambda: engine.other_gets)
        await self.stats_where(
            lambda stats: any(i.boot_id == engine.boot_id and "first health" not in i.reason for i in stats.instances)
        )
        return await self.state_of(engine, "joining")

    async def state_of(self, engine: FakeEngine, state: str, timeout_s: float = 30.0) -> InstanceStats:
        """Wait until an engine is in this state."""
        async with asyncio.timeout(timeout_s):
            while True:
                instance = await self.instance(engine)
                if instance is not None and instance.state == state:
                    return instance
                await asyncio.sleep(TICK_S)


def settings(**fields: Any) -> Settings:
    """Settings for tests: free ports, everything fast."""
    http_port, zmq_port = free_ports(2)
    fast: dict[str, Any] = {
        "http_proxy_port": http_port,
        "proxy_port": zmq_port,
        "bind_host": "127.0.0.1",
        "ping_ttl_s": 1.0,
        "health_interval_s": 0.1,
        "health_timeout_s": 1.0,
        "probe_interval_s": 0.1,
        "abort_grace_s": 0.3,
        "drain_timeout_s": 1.0,
        "canary": False,
    }
    return Settings(**fast | fields)


@contextlib.asynccontextmanager
async def running_proxy(**fields: Any) -> AsyncIterator[RunningProxy]:
    """Serve a proxy in this event loop; at the end its shutdown must be clean."""
    chosen = settings(**fields)
    shutdown = asyncio.Event()
    serving = asyncio.create_task(serve(chosen, shutdown))
    async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as session:
        proxy = RunningProxy(chosen, session, stack, shutdown, serving)
        await listening(chosen.http_proxy_port, serving)
        try:
            yield proxy
        finally:
            await session.close()  # a proxy that ends waits a moment for what comes over kept connections
            proxy.shutdown.set()
            await asyncio.wait_for(proxy.serving, 30)


async def listening(port: int, serving: "asyncio.Task[None]", timeout_s: float = 90.0) -> None:
    """Wait until somebody accepts connections on the port."""
    async with asyncio.timeout(timeout_s):
        while True:
            if serving.done():
                serving.result()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(TICK_S)
            else:
                writer.close()
                await writer.wait_closed()
                return


def has_number(text: str, number: int) -> bool:
    """Whether a text holds a number, by itself: in the digits of an id it is there by chance."""
    return re.search(rf"(?<!\w){number}(?!\w)", text) is not None


class RawClient:
    """A client that sends one request over a plain socket, reads what it likes, and can just go away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def send(
        cls, proxy: RunningProxy, body: Any, path: str = "/v1/completions", buffer_bytes: int = BUFFER_BYTES
    ) -> Self:
        """Connect and send; what has not been read yet is buffered up to twice `buffer_bytes`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.settings.http_proxy_port, limit=buffer_bytes)
        client = cls(reader, writer)
        await client.ask(body, path)
        proxy.engines.push_async_callback(client.leave)
        return client

    async def ask(self, body: Any, path: str = "/v1/completions") -> None:
        """Send a request."""
        data = json.dumps(body).encode()
        self._writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await self._writer.drain()

    async def read_until(self, mark: bytes) -> bytes:
        """Read up to and with a mark."""
        return await asyncio.wait_for(self._reader.readuntil(mark), 30)

    async def leave(self) -> None:
        """Close the connection, if it is not closed yet."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
