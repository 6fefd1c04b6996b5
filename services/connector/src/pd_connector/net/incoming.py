"""Decode's half of a station: KV arrives in landing memory and is copied from there into the blocks of requests."""

import functools
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pd_connector.core.orders import Copy, Count, Drain, Drop, Event, Expect, Failed, Load, Near, Park, Ready
from pd_connector.core.receiver import Extent, Receiver
from pd_connector.net.channel import Channel
from pd_connector.net.loop import Loop
from pd_connector.net.plant import Plant, Store
from pd_connector.net.transport import Site, Transport, TransportError
from pd_connector.wire.messages import Message, Part, Ping, ProtocolError

log = logging.getLogger(f"vllm.{__name__}")


@dataclass(slots=True, eq=False)
class _Link:
    """A push connection from a prefill engine."""

    channel: Channel
    session: str
    transport: Transport
    address: str


class Incoming:
    """The receiver, its connections, and the copies from landing memory into blocks."""

    def __init__(self, plant: Plant, loop: Loop, dial: Callable[[str], None]) -> None:
        """`dial` opens an ask connection."""
        identity = plant.identity
        self._plant = plant
        self._loop = loop
        self._dial = dial
        self.receiver = Receiver(identity.boot, identity.address, plant.settings, tokens=identity.rank == 0)
        self.landing = Store(plant, "landing", self.receiver.add_memory)
        # Set when a key arrived, failed, or is near, for a scheduler that is idle and waits for it.
        self.arrived = threading.Event()
        self._links: dict[int, _Link] = {}
        self._asks: dict[str, Channel] = {}
        self._unasked: dict[str, list[Message]] = {}
        self._drains: dict[str, Drain] = {}
        self._loading: list[tuple[Any, str, list[int]]] = []
        self._chosen: dict[str, tuple[str, int]] = {}  # transport and connection by session

    def offers(self) -> dict[str, tuple[Transport, dict[str, str]]]:
        """Open the transports over which this engine receives KV."""
        found: dict[str, tuple[Transport, dict[str, str]]] = {}
        for transport in self._plant.transports:
            site = Site(
                landing=functools.partial(self.landing.of, transport.kind),
                may_write=self._may_write,
                quiet=functools.partial(self._quiet, transport.name),
            )
            try:
                found[transport.name] = (transport, transport.listen(site))
            except TransportError as error:
                log.warning("P2pConnector takes no KV over %s: %s", transport.name, error)
        return found

    # The engine

    def do(self, order: Expect | Park | Drop | Count) -> None:
        """Carry out an order that needs no step."""
        with self._plant.lock:
            if isinstance(order, Expect):
                self._plant.trace.note("expected", order.key)
                self.receiver.expect(order, time.monotonic())
            elif isinstance(order, Park):
                self.receiver.park(order.key, time.monotonic())
            else:
                if isinstance(order, Drop):
                    self.receiver.drop(order)
                self._plant.stats.count("loads", order.outcome)
            self.flush()

    def load(self, order: Load) -> bool:
        """Copy an arrived key into its blocks, before the engine's next work. False if it is not there after all."""
        self._plant.trace.note("prepared", order.key)
        if order.soon:
            self._await(order.key)
        begun = time.perf_counter()
        with self._plant.lock:
            found = self.receiver.take(order.key)
            if found is None:
                # What comes of it later is of no use any more.
                self.receiver.drop(Drop(order.key, "late"))
                self._plant.stats.count("loads", "lost")
                self.flush()
                return False
            self._scatter(*found, order.blocks, order.skip)
            self._plant.trace.note("scattered", order.key)
            self._plant.stats.count("loads", "loaded")
            self.flush()
        self._plant.stats.span("stage", "scatter", time.perf_counter() - begun)
        return True

    def _await(self, key: str) -> None:
        """Wait within a step until a key is complete or has failed, or the time for that is over."""
        begun = time.monotonic()
        deadline = begun + self._plant.settings.soon_wait_ms / 1000
        while True:
            self.arrived.clear()
            with self._plant.lock:
                coming = self.receiver.is_coming(key)
            left = deadline - time.monotonic()
            if not coming or left <= 0:
                break
            self.arrived.wait(left)
        self._plant.stats.span("stage", "in step", time.monotonic() - begun)

    def copy(self, order: Copy) -> None:
        """Copy KV from another request's blocks into this one's, before the engine's next work."""
        count = min(len(order.sources), len(order.blocks))
        with self._plant.lock:
            self._plant.copier.duplicate(
                list(order.sources[order.skip : count]), list(order.blocks[order.skip : count])
            )
            self._plant.stats.count("loads", "loaded")

    def drain(self, order: Drain) -> None:
        """Copy a key into its blocks as it arrives."""
        with self._plant.lock:
            self._drains[order.request_id] = order

    def drained(self, ended: Iterable[str]) -> tuple[set[str], set[int]]:
        """Continue the drains between steps. Returns requests that are complete, and blocks whose KV did not arrive."""
        done: set[str] = set()
        empty: set[int] = set()
        with self._plant.lock:
            for request_id in [request_id for request_id in ended if request_id in self._drains]:
                self.receiver.drop(Drop(self._drains.pop(request_id).key, "aborted"))
                self._plant.stats.count("loads", "aborted")
                done.add(request_id)
            for request_id, order in list(self._drains.items()):
                found = self.receiver.drain(order.key)
                if found is None:
                    empty.update(order.blocks[order.skip :])
                elif found[1]:
                    self._scatter(found[0], found[1], order.blocks, order.skip)
                if found is None or found[2]:
                    del self._drains[request_id]
                    done.add(request_id)
                    self._plant.stats.count("loads", "recomputed" if found is None else "loaded")
            self.flush()
        return done, empty

    def _scatter(self, kind: str, extents: list[Extent], blocks: tuple[int, ...], skip: int) -> None:
        targets: list[int] = []
        addresses: list[int] = []
        pages: list[int] = []
        for extent in extents:
            pages += extent.pages
            rows = self.landing.rows(kind, list(extent.pages), extent.count)
            # Decode may not have a block yet for the prompt's last token, which it computes itself.
            low, high = max(skip - extent.first, 0), min(extent.count, len(blocks) - extent.first)
            if low < high:
                targets += blocks[extent.first + low : extent.first + high]
                addresses += rows[low:high]
        mark = self._plant.copier.scatter(targets, addresses) if targets else None
        self._loading.append((mark, kind, pages))
        self._reap()

    def _reap(self) -> None:
        """Free the pages that have been copied into blocks. The caller holds the lock."""
        over = [entry for entry in self._loading if self._plant.copier.is_over(entry[0])]
        if over:
            self._loading = [entry for entry in self._loading if entry not in over]
        for _, kind, pages in over:
            self.receiver.release(kind, pages)

    # Connections

    def push_accepted(self, channel: Channel, session: str, transport: Transport, address: str) -> None:
        """A prefill engine wants to send KV."""
        with self._plant.lock:
            self.landing.of(transport.kind)
            link = self._links[channel.number] = _Link(channel, session, transport, address)
            self._chosen[session] = (transport.name, channel.number)
            channel.heard = lambda _channel, message: self._heard(link, message)
            channel.ended = lambda _channel, reason: self._ended(link, reason)
            self._plant.stats.gauge("peer_up", f"{address} {transport.name}", 1)
            log.info("P2pConnector takes KV from %s over %s", address, transport.name)
            self.receiver.link_up(channel.number, transport.kind)
            self.flush()

    def _heard(self, link: _Link, message: Message) -> None:
        plant = self._plant
        with plant.lock:
            link.channel.last_heard = time.monotonic()
            if isinstance(message, Ping):
                return
            if isinstance(message, Part):
                plant.trace.note("landed", message.key)
                self._check(link, message)
                plant.stats.count("received_bytes", link.transport.name, message.size)
            if not self.receiver.hear(link.channel.number, message, time.monotonic()):
                msg = f"{type(message).__name__} on a push connection"
                raise ProtocolError(msg)
            self.flush()

    def _check(self, link: _Link, part: Part) -> None:
        plant = self._plant
        full = plant.page_blocks * (len(part.pages) - 1)
        if part.size != part.count * plant.block_bytes or not full < part.count <= full + plant.page_blocks:
            msg = f"{part.count} blocks of {part.size} bytes in {len(part.pages)} pages"
            raise ProtocolError(msg)
        if part.checksum is not None and self.receiver.may_write(link.channel.number, part.pages):
            memory = self.landing.of(link.transport.kind)
            found = zlib.crc32(memory.read(part.pages[0], part.size))
            if found != part.checksum:
                msg = f"the bytes of {part.key} changed in transit"
                raise ProtocolError(msg)

    def _ended(self, link: _Link, reason: str) -> None:
        with self._plant.lock:
            del self._links[link.channel.number]
            self._plant.stats.gauge("peer_up", f"{link.address} {link.transport.name}", 0)
            self._plant.stats.count("peer_lost", "prefill")
            log.warning("P2pConnector lost prefill at %s: %s", link.address, reason)
            self.receiver.link_down(link.channel.number, f"prefill at {link.address}: {reason}")
            self.flush()
        link.transport.end(link.session)

    def _may_write(self, session: str, pages: list[int]) -> bool:
        with self._plant.lock:
            chosen = self._chosen.get(session)
            return chosen is not None and self.receiver.may_write(chosen[1], pages)

    def _quiet(self, transport: str, session: str) -> None:
        """A transport reports that a session's peer can no longer write. Any thread."""
        with self._plant.lock:
            name, number = self._chosen.get(session, ("", 0))
            if name == transport:
                self._loop.call(lambda: self._is_quiet(session, number))

    def _is_quiet(self, session: str, number: int) -> None:
        link = self._links.get(number)
        if link is not None:
            link.channel.close("its transport ended")
        with self._plant.lock:
            self._chosen.pop(session, None)
            self.receiver.link_quiet(number)
            self.flush()

    def ask_opened(self, address: str, channel: Channel) -> None:
        """Prefill at this address can now be asked for KV."""
        with self._plant.lock:
            self._asks[address] = channel
            channel.heard = lambda channel, message: self._answered(address, channel, message)
            channel.ended = lambda _channel, reason: self._ask_ended(address, reason)
            channel.open(time.monotonic())
            channel.send(self._unasked.pop(address, []), time.monotonic())

    def ask_failed(self, address: str, reason: str) -> None:
        log.warning("P2pConnector cannot ask prefill at %s: %s", address, reason)
        self._ask_ended(address, reason)

    def _answered(self, address: str, channel: Channel, message: Message) -> None:
        with self._plant.lock:
            channel.last_heard = time.monotonic()
            if isinstance(message, Ping):
                return
            if not self.receiver.asked(address, message, time.monotonic()):
                msg = f"{type(message).__name__} on an ask connection"
                raise ProtocolError(msg)
            self.flush()

    def _ask_ended(self, address: str, reason: str) -> None:
        with self._plant.lock:
            self._asks.pop(address, None)
            self._unasked.pop(address, None)
            self.receiver.ask_down(address, f"prefill at {address}: {reason}")
            self.flush()

    def flush(self) -> None:
        """Report the receiver's events to the scheduler, and send its messages. The caller holds the lock."""
        now, receiver = time.monotonic(), self.receiver
        # First what a request waits for; new credit for prefill is in no hurry.
        events, receiver.events = receiver.events, []
        for event in events:
            self._report(event)
        messages, receiver.messages = receiver.messages, []
        for number, message in messages:
            if number in self._links:
                self._links[number].channel.send([message], now)
        wants, receiver.wants = receiver.wants, []
        for address, want in wants:
            if address in self._asks:
                self._asks[address].send([want], now)
            else:
                self._unasked.setdefault(address, []).append(want)
        dial, receiver.dial = receiver.dial, []
        for address in dial:
            self._dial(address)
        outcomes, receiver.outcomes = receiver.outcomes, []
        for outcome in outcomes:
            self._plant.stats.count("loads", outcome)

    def _report(self, event: Event) -> None:
        self._plant.report(event)
        match event:
            case Ready(key=key):
                self._plant.trace.note("ready", key)
                self.arrived.set()
            case Near(key=key):
                self._plant.trace.note("near", key)
                self.arrived.set()
            case Failed(key=key, reason=reason):
                log.warning("P2pConnector: KV of %s will not come: %s", key, reason)
                self.arrived.set()
            case _:
                pass

    def tick(self, now: float) -> list[Channel]:
        """Give up keys that take too long; returns the open connections. The caller holds the lock."""
        self._reap()
        self.receiver.tick(now)
        self.flush()
        for state, count in self.receiver.counts().items():
            self._plant.stats.gauge("landing_pages", state, count)
        return [*(link.channel for link in self._links.values()), *self._asks.values()]

    def stop(self) -> None:
        for channel in [*(link.channel for link in self._links.values()), *self._asks.values()]:
            self._loop.call(functools.partial(channel.close, "this engine ends"))
        for transport in self._plant.transports:
            transport.stop()
