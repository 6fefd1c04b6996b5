"""The socket that clients connect to: requests for tokens are served here, every other connection is handed to Hypercorn.

A token costs microseconds here and ten times that on its way through a server, a queue, a task and a framework. So a connection is
read by `wire.request_head`, which understands only requests for tokens, and only plain ones. Anything else, also a later
request of a connection, goes with every byte that was not used yet to Hypercorn, which serves the same routes, and keeps the
connection to its end. What both do with a request is in `serving`.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final, cast

import h11
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import LifespanState
from hypercorn.utils import wrap_app

from pd_contracts.descriptors import free_descriptors
from pd_proxy.api import cors
from pd_proxy.api.antechamber import Antechamber
from pd_proxy.api.app import Proxy
from pd_proxy.api.client import LOOK_S, Client
from pd_proxy.api.handed_over import HandedOver, Server, Writer, state_of
from pd_proxy.api.room import ENGINES_A_CLIENT, RESERVE, Room, client_of
from pd_proxy.api.unread import sent_already
from pd_proxy.api.unsent import Unsent
from pd_proxy.context import LAST_CALL_S
from pd_proxy.errors import HttpError, ProxyError, TooManyConnectionsError
from pd_proxy.protocol import not_served
from pd_proxy.request.serving import JSON, error_of

SWEEP_S: Final = 1.0
# The longest reason that a client is told.
MAX_REASON: Final = 200
# How often to count the free descriptors: other parts of the process need some, too.
MEASURE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class PassedOn:
    """Connections that another process has accepted: `take` returns those that have arrived through `source`."""

    source: socket.socket
    take: Callable[[socket.socket], Sequence[socket.socket]]


async def serve_front(
    app: Proxy,
    config: Config,
    shutdown: Callable[[], Awaitable[None]],
    sockets: Sequence[socket.socket] = (),
    passed_on: PassedOn | None = None,
) -> None:
    """Serve until `shutdown` returns, then let running requests end within the configuration's graceful timeout.

    Without `sockets`, which are bound already, the configuration's are opened.

    Raises:
        OSError: if the port cannot be opened.
    """
    connections = Connections(app, config)
    loop = connections.loop
    servers = [
        await loop.create_server(lambda: Client(connections), sock=sock, backlog=config.backlog)
        for sock in sockets or config.create_sockets().insecure_sockets
    ]
    await app.startup()
    if passed_on is not None:
        loop.add_reader(passed_on.source.fileno(), connections.take, passed_on)
    sweeping = loop.create_task(connections.sweep())
    try:
        await shutdown()
    finally:
        for server in servers:
            server.close()
        if passed_on is not None:
            loop.remove_reader(passed_on.source.fileno())
        sweeping.cancel()
        await connections.finish()
        await app.shutdown()


class Connections:
    """What all connections share."""

    def __init__(self, app: Proxy, config: Config) -> None:
        self.loop = asyncio.get_running_loop()
        self.context = app.context
        self.config = config
        self.clients: set[Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._joining: set[asyncio.Task[Any]] = set()
        self._handed_over: dict[HandedOver, Unsent] = {}
        self._addresses: dict[asyncio.Transport, str] = {}
        self._outside = Antechamber(RESERVE // 2)
        self._room = Room(free_descriptors(), self.context.settings.max_connections_per_client)
        self.context.upstream.limit_connections(self._room.limit * ENGINES_A_CLIENT)
        self._measured = self.loop.time()
        self._worker = WorkerContext(None)
        self._wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
        self._date = (0, "")

    def take(self, passed_on: PassedOn) -> None:
        """Serve connections that another process has accepted."""
        for sock in passed_on.take(passed_on.source):
            sock.setblocking(False)
            joining = self.loop.create_task(self.loop.connect_accepted_socket(lambda: Client(self), sock))
            self._joining.add(joining)
            joining.add_done_callback(self._joined)

    def _joined(self, joining: "asyncio.Task[Any]") -> None:
        self._joining.discard(joining)
        if not joining.cancelled():
            joining.exception()  # the client left before it was served

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Make Hypercorn serve a connection, beginning with `data`."""
        self._outside.serve(transport)
        settings = self.context.settings
        protocol = HandedOver(transport, self._hypercorn, self._hypercorn_left, self._refusal, settings.max_body_bytes)
        self._handed_over[protocol] = Unsent(transport, settings.client_stall_timeout_s)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def wait_outside(self, transport: asyncio.Transport, leave: Callable[[], None]) -> bool:
        """Keep a connection for which there is no room until its client has said what it wants, or `leave` is called. Returns False if it must end at once."""
        return self._outside.enter(transport, _client_of(transport), sent_already(transport), leave)

    def enter(self, transport: asyncio.Transport) -> ProxyError | None:
        """Count a connection; returns the error for its client if there is no room for it."""
        address = _client_of(transport)
        error = self._room.take(address)
        if error is None:
            self._addresses[transport] = address
            return None
        self.context.shortage.noted(
            "per_client" if isinstance(error, TooManyConnectionsError) else "clients", error.message
        )
        return error

    def leave(self, transport: asyncio.Transport) -> None:
        self._outside.left(transport)
        address = self._addresses.pop(transport, None)
        if address is not None:
            self._room.give_back(address)

    def _hypercorn_left(self, protocol: HandedOver) -> None:
        del self._handed_over[protocol]
        self.leave(protocol.transport)

    async def _hypercorn(self, protocol: HandedOver, reader: asyncio.StreamReader, writer: Writer) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.tasks.add(task)
        app, state = protocol.counting(self._wrapped), LifespanState(state_of(writer))
        try:
            await Server(app, self.loop, self.config, self._worker, state, reader, writer)
        finally:
            self.tasks.discard(task)

    def _refusal(
        self, status: int, reason: str, request: h11.Request | None
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The headers and the body with which Hypercorn refuses a request that is not valid HTTP."""
        self.context.refused.noted(status, reason)
        asked = {name: value.decode("latin-1") for name, value in request.headers} if request is not None else {}
        path = request.target.decode("latin-1") if request is not None else ""
        origins = self.context.settings.cors_origins
        told = cors.unread(origins) if request is None else cors.headers(origins, asked.get(b"origin", ""))
        headers = {"content-type": JSON, **told}
        body = error_of(path, HttpError(status, not_served.reason(path) or reason[:MAX_REASON]))
        return [(name.lower().encode(), value.encode()) for name, value in headers.items()], body

    def date(self) -> str:
        """The value of the Date header, in whole seconds."""
        now = int(self.loop.time())
        if now != self._date[0]:
            self._date = (now, formatdate(usegmt=True))
        return self._date[1]

    async def sweep(self) -> None:
        """Forever end the connections that are idle for too long, or whose clients do not read what they were sent."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.loop.time()
            if now - self._measured > MEASURE_S:
                self._measured = now
                own = self._room.count + self.context.upstream.connections
                self._room.measure(free_descriptors() + own)
                self.context.upstream.limit_connections(self._room.limit * ENGINES_A_CLIENT)
            for client in list(self.clients):
                client.expire(now)
            for protocol, unsent in list(self._handed_over.items()):
                if unsent.stalled(now):
                    protocol.transport.abort()
                elif protocol.idle_s(now) > self.config.keep_alive_timeout and not unsent.size:
                    protocol.transport.close()

    async def finish(self) -> None:
        """Serve what is on its way over kept connections, let running requests end, then cancel them."""
        self.stopping = True
        last = self.loop.time() + self.config.graceful_timeout
        for client in list(self.clients):
            client.stop()
        quiet = min(last, self.loop.time() + LAST_CALL_S)
        while self._handed_over and self.loop.time() < quiet:  # noqa: ASYNC110  no event for what others do
            await asyncio.sleep(LOOK_S)
        await self._worker.terminated.set()
        for protocol in list(self._handed_over):
            if protocol.idle_s(self.loop.time()):
                protocol.transport.close()  # after what has been written
        while (self.tasks or self.clients) and self.loop.time() < last:  # noqa: ASYNC110  likewise
            await asyncio.sleep(LOOK_S)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for client in list(self.clients):
            client.close()


def _client_of(transport: asyncio.Transport) -> str:
    return client_of(str((transport.get_extra_info("peername") or ("",))[0]))
