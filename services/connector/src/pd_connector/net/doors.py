"""Setting up the connections of an engine's rank: those that others open, and those that it opens to others."""

import contextlib
import functools
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from pd_connector.memory.pages import Memory
from pd_connector.net.channel import Channel, tune
from pd_connector.net.handshake import Identity, RefusedError, choose, greet, judge, use
from pd_connector.net.loop import Loop
from pd_connector.net.transport import Transport, TransportError, Writer
from pd_connector.settings import Settings
from pd_connector.wire.messages import Hello, Message, Offer, Refusal, Use, Welcome
from pd_connector.wire.params import of_rank

log = logging.getLogger(f"vllm.{__name__}")


class Host(Protocol):
    """The owner of the connections. All methods are called in the loop's thread."""

    def takes(self, purpose: str) -> str:
        """Why a connection for this purpose is refused; empty if it is accepted."""
        ...

    def push_opened(
        self, address: str, channel: Channel, welcome: Welcome, transport: Transport, writer: Writer
    ) -> None:
        """KV can now be sent to decode at this address."""
        ...

    def push_failed(self, address: str, reason: str) -> None: ...

    def ask_opened(self, address: str, channel: Channel) -> None:
        """Prefill at this address can now be asked for KV."""
        ...

    def ask_failed(self, address: str, reason: str) -> None: ...

    def push_accepted(self, channel: Channel, session: str, transport: Transport, address: str) -> None: ...

    def ask_accepted(self, channel: Channel) -> None: ...

    def fell_back(self, transport: str) -> None:
        """A connection could not use this transport, and uses a slower one."""
        ...

    def refused(self, address: str, reason: str) -> None:
        """An engine was refused, or refused this one."""
        ...


class Doors:
    """The port of a rank, and connections to the ports of others."""

    def __init__(
        self,
        host: Host,
        *,
        identity: Identity,
        settings: Settings,
        loop: Loop,
        offers: dict[str, tuple[Transport, dict[str, str]]],
        transports: dict[str, Transport],
        staging: Callable[[str], Memory],
    ) -> None:
        """`offers`: transports over which this engine receives KV, with what peers must know; `transports`: those over which it can send."""
        self._host = host
        self._identity = identity
        self._settings = settings
        self._loop = loop
        self._offers = offers
        self._transports = transports
        self._staging = staging
        self._numbers = itertools.count(1)
        self._listener: socket.socket | None = None
        self._greeting: dict[int, tuple[Channel, float]] = {}
        self._sessions: dict[int, Hello] = {}
        self._ends = False

    def listen(self, port: int) -> int:
        """Open the port; returns its number, which the system chose if it is 0.

        Raises:
            OSError: if it is taken.
        """
        self._listener = socket.create_server(("", port), backlog=128, reuse_port=False)
        self._listener.setblocking(False)
        listener = self._listener
        self._loop.call(lambda: self._loop.watch(listener, self._accept))
        return int(listener.getsockname()[1])

    def close(self) -> None:
        self._ends = True
        self._loop.call(self._close)

    def _close(self) -> None:
        if self._listener is not None:
            self._loop.forget(self._listener)
            self._listener.close()
            self._listener = None
        for channel, _ in list(self._greeting.values()):
            channel.close("this engine ends")

    def tick(self, now: float) -> None:
        """Close connections that did not say their purpose, or choose a transport, in time."""
        for channel, deadline in list(self._greeting.values()):
            if now > deadline:
                channel.close("it did not say its purpose")

    # Connections that others open

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it has left already
        now = time.monotonic()
        channel = Channel(next(self._numbers), tune(sock), self._loop, self._greeted)
        channel.ended = lambda channel, _reason: self._forget(channel)
        self._greeting[channel.number] = (channel, now + self._settings.hello_timeout_s)
        channel.open(now)

    def _forget(self, channel: Channel) -> None:
        self._greeting.pop(channel.number, None)
        if self._sessions.pop(channel.number, None) is not None:
            for transport, _ in self._offers.values():
                transport.end(self._session(channel))

    def _session(self, channel: Channel) -> str:
        return f"{self._identity.boot}-{channel.number}"

    def _greeted(self, channel: Channel, message: Message) -> None:
        now = time.monotonic()
        refusal = judge(message, self._identity) if isinstance(message, Hello) else Refusal(reason="no hello")
        if refusal is None and isinstance(message, Hello):
            reason = self._host.takes(message.purpose)
            refusal = Refusal(reason=reason) if reason else None
        if refusal is not None or not isinstance(message, Hello):
            self._refuse(channel, message, refusal or Refusal(reason="no hello"), now)
        elif message.purpose == "data":
            self._adopt(channel, message)
        elif message.purpose == "ask":
            self._greeting.pop(channel.number)
            channel.send([Welcome(boot=self._identity.boot)], now)
            self._host.ask_accepted(channel)
        else:
            self._invite(channel, message, now)

    def _refuse(self, channel: Channel, message: Message, refusal: Refusal, now: float) -> None:
        name = message.address if isinstance(message, Hello) else channel.peer
        self._host.refused(name, refusal.reason)
        channel.send([refusal], now)
        channel.close(refusal.reason)

    def _adopt(self, channel: Channel, hello: Hello) -> None:
        self._greeting.pop(channel.number)
        sock = channel.detach()
        sock.setblocking(True)
        # An engine of an earlier version does not name its transport.
        found = self._offers.get(next(iter(hello.transports), "tcp"))
        if found is None:
            sock.close()
        else:
            found[0].adopt(hello.session, sock)

    def _invite(self, channel: Channel, hello: Hello, now: float) -> None:
        common = {name: offer for name, offer in self._offers.items() if name in hello.transports}
        session = self._session(channel)
        for transport, _ in common.values():
            transport.adopt(session, None)
        self._sessions[channel.number] = hello
        # Prefill tries one transport after the other.
        limit = self._settings.hello_timeout_s * (1 + len(common)) + (
            self._settings.join_timeout_s if "nccl" in common else 0
        )
        self._greeting[channel.number] = (channel, now + limit)
        channel.heard = self._chosen
        offers = [Offer(transport=name, details=details) for name, (_, details) in common.items()]
        soon = self._settings.soon_transports if self._settings.soon_wait_ms > 0 else ()
        channel.send([Welcome(boot=self._identity.boot, session=session, offers=offers, soon=soon)], now)

    def _chosen(self, channel: Channel, message: Message) -> None:
        found = self._offers.get(message.transport) if isinstance(message, Use) else None
        if found is None:
            channel.close("it chose no transport")
            return
        self._greeting.pop(channel.number)
        hello, session = self._sessions.pop(channel.number), self._session(channel)
        channel.last_heard = time.monotonic()
        for transport, _ in self._offers.values():
            if transport is not found[0]:
                transport.end(session)
        self._host.push_accepted(channel, session, found[0], hello.address)

    # Connections that this rank opens

    def dial(self, address: str, purpose: str) -> None:
        """Connect to another engine's same rank, in a thread of its own."""
        work = self._dial_push if purpose == "push" else self._dial_ask
        threading.Thread(target=work, args=(address,), name=f"pd-dial-{purpose}", daemon=True).start()

    def _dial_push(self, address: str) -> None:
        target, limit = of_rank(address, self._identity.rank), self._settings.hello_timeout_s
        try:
            with contextlib.ExitStack() as opened:
                sock, welcome = greet(self._identity, target, "push", list(self._transports), limit)
                opened.callback(sock.close)
                transport, writer, worse_than = choose(welcome, self._transports, self._staging, target, self._settings)
                opened.callback(writer.close)
                use(sock, transport)
                opened.pop_all()
        except (OSError, RefusedError, TransportError, ValueError) as error:
            # A ValueError: there is no memory for this transport.
            self._report(address, error, self._host.push_failed)
            return
        for better, reason in worse_than.items():
            log.warning("P2pConnector sends to %s over %s, because %s", address, transport.name, reason)
            self._loop.call(functools.partial(self._host.fell_back, better))
        if self._ends:
            sock.close()
            writer.close()
            return
        channel = Channel(next(self._numbers), sock, self._loop, lambda _channel, _message: None)
        self._loop.call(lambda: self._host.push_opened(address, channel, welcome, transport, writer))

    def _dial_ask(self, address: str) -> None:
        try:
            target = of_rank(address, self._identity.rank)
            sock, _ = greet(self._identity, target, "ask", [], self._settings.hello_timeout_s)
        except (OSError, RefusedError) as error:
            self._report(address, error, self._host.ask_failed)
            return
        channel = Channel(next(self._numbers), sock, self._loop, lambda _channel, _message: None)
        self._loop.call(lambda: self._host.ask_opened(address, channel))

    def _report(self, address: str, error: Exception, failed: Callable[[str, str], None]) -> None:
        reason = str(error) if isinstance(error, RefusedError) else f"cannot be reached: {error}"
        if isinstance(error, RefusedError):
            self._loop.call(lambda: self._host.refused(address, reason))
        self._loop.call(lambda: failed(address, reason))
