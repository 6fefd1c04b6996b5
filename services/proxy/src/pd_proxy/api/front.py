"""The socket that clients connect to: requests for tokens are served here, every other connection becomes Hypercorn's.

A token costs microseconds here and ten times that on its way through a server, a queue, a task and a framework. So a connection is
read by `wire.request_head`, which understands only requests for tokens, and only plain ones. Anything else, also a later
request of a connection, goes with every byte that was not used yet to Hypercorn, which serves the same routes, and keeps the
connection to its end. What both do with a request is in `serving`.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import Final, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from pd_proxy.api.app import Proxy
from pd_proxy.api.client import Client

SWEEP_S: Final = 1.0


async def serve_front(
    app: Proxy, config: Config, shutdown: Callable[[], Awaitable[None]], sockets: Sequence[socket.socket] = ()
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
    sweeping = loop.create_task(connections.sweep())
    try:
        await shutdown()
    finally:
        for server in servers:
            server.close()
        sweeping.cancel()
        await connections.finish()
        await app.shutdown()


class Connections:
    """What the connections share."""

    def __init__(self, app: Proxy, config: Config) -> None:
        """Nobody is connected yet."""
        self.loop = asyncio.get_running_loop()
        self.context = app.context
        self.config = config
        self.clients: set[Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._worker = WorkerContext(None)
        self._wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
        self._date = (0, "")

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Make Hypercorn serve a connection, beginning with `data`."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, self._hypercorn)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def _hypercorn(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.tasks.add(task)
        try:
            await TCPServer(self._wrapped, self.loop, self.config, self._worker, {}, reader, writer)
        finally:
            self.tasks.discard(task)

    def date(self) -> str:
        """The time as HTTP writes it, in whole seconds."""
        now = int(self.loop.time())
        if now != self._date[0]:
            self._date = (now, formatdate(usegmt=True))
        return self._date[1]

    async def sweep(self) -> None:
        """End the connections that are idle for too long, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.loop.time()
            for client in list(self.clients):
                client.expire(now)

    async def finish(self) -> None:
        """Serve no new requests, let the running ones end, then cancel them."""
        self.stopping = True
        await self._worker.terminated.set()
        for client in list(self.clients):
            client.stop()
        last = self.loop.time() + self.config.graceful_timeout
        while self.tasks and self.loop.time() < last:
            await asyncio.wait(self.tasks, timeout=last - self.loop.time())
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for client in list(self.clients):
            client.close()
