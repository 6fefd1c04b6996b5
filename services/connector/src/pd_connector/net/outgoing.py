"""Prefill's half of a station: computed blocks go through staging memory to their decode engines."""

import functools
import logging
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from pd_connector.core.forecast import Forecast
from pd_connector.core.orders import Begin, Computed, Ended, Forget, Preempted
from pd_connector.core.sender import Peer, Piece, Put, Sender
from pd_connector.net.channel import Channel
from pd_connector.net.lanes import Lane
from pd_connector.net.loop import Loop
from pd_connector.net.plant import Plant, Store
from pd_connector.net.transport import Move, Transport, TransportError, Writer
from pd_connector.wire.messages import Message, Ping, ProtocolError, Welcome

log = logging.getLogger(f"vllm.{__name__}")
# Where decode waits for prefill's token, too, what it waits for is there about this much later: a token has still to be sampled, and its KV
# is copied after that. Decode must not begin earlier than it has to, because on a GPU that both share it slows the rest of prefill's step.
SAMPLING_S: Final = 0.002


@dataclass(slots=True, eq=False)
class _Link:
    """A push connection to a decode engine. `moving` pages are being written."""

    channel: Channel
    peer: Peer
    transport: Transport
    writer: Writer
    lane: Lane | None
    moving: int = 0
    broken: bool = False


class Outgoing:
    """The sender, its connections, and the threads that copy for it."""

    def __init__(self, plant: Plant, loop: Loop, dial: Callable[[str], None]) -> None:
        """`dial` opens a push connection."""
        self._plant = plant
        self._loop = loop
        self._dial = dial
        self.sender = Sender(plant.page_blocks, plant.settings)
        self.staging = Store(plant, "staging", self.sender.add_memory)
        self._links: dict[str, _Link] = {}
        self._asks: dict[int, Channel] = {}
        # Separate threads: pieces of a step follow that step, and pieces gathered in parallel must not wait for the next step.
        self._with_steps = Lane("pd-put", plant.copier.enter_thread)
        self._beside = Lane("pd-put-beside", plant.copier.enter_thread)
        self._gathers_beside = False
        self._watch: Lane | None = None  # made for the first decode engine that wants to hear what comes soon
        self._forecast, self._share = Forecast(0), 1.0

    # The engine

    def do(self, order: Begin | Ended | Forget) -> None:
        """Carry out an order that needs no step."""
        with self._plant.lock:
            now = time.monotonic()
            match order:
                case Begin():
                    self._plant.trace.note("begin", order.key)
                    self.sender.begin(order, now)
                case Ended():
                    self._plant.trace.note("ended", order.key)
                    self.sender.ended(order, now)
                case Forget(key=key, reason=reason):
                    self.sender.forget(key, reason)
            self._go_on()

    def preempt(self, order: Preempted) -> None:
        """Called before a step that may overwrite a request's blocks."""
        with self._plant.lock:
            self._plant.copier.fence()
            self.sender.preempted(order.key)

    def save(self, orders: list[Computed], *, early: bool = False) -> None:
        """Gather the KV of a step, after its computation was launched; `early`: in parallel to the rest of the step."""
        begun = time.perf_counter()
        plant = self._plant
        with plant.lock:
            now, computed = time.monotonic(), plant.copier.computed()
            for order in orders:
                plant.trace.note("written" if early else "launched", order.key)
                self.sender.computed(order, computed, now)
            pieces = self.sender.gather([order.key for order in orders])
            gather = plant.copier.gather_early if early else plant.copier.gather
            if pieces:
                mark = gather(*self._rows(pieces))
                self.sender.gathered(pieces, mark, now)
            self._go_on()
        plant.stats.span("stage", "gather", time.perf_counter() - begun)

    def foresee(self, orders: Collection[Computed], share: float, following: float) -> None:
        """Tell decode when the last layers of a step are near, if it wants to hear that; `share` of all layers is launched."""
        plant = self._plant
        with plant.lock:
            keys = self.sender.foreseeable([order.key for order in orders])
            mark = plant.copier.computed() if keys else None
        if share <= self._share:  # another step has begun
            lead_s = plant.settings.soon_lead_ms / 1000
            self._forecast = Forecast(lead_s if any(order.early for order in orders) else lead_s - SAMPLING_S)
        self._share = share
        if keys:
            self._watch = self._watch or Lane("pd-soon", plant.copier.enter_thread)
            self._watch.submit(functools.partial(self._look, self._forecast, keys, (share, following), mark))

    def _look(self, forecast: Forecast, keys: list[str], shares: tuple[float, float], mark: Any) -> None:
        """Wait until so many layers are computed, and perhaps until the last one is near. Runs in a lane."""
        if forecast.told:
            return
        self._plant.copier.wait(mark)
        now = time.monotonic()
        due = forecast.passed(shares[0], now, shares[1])
        if due is None:
            return
        time.sleep(max(0.0, due - now))
        with self._plant.lock:
            for key in self.sender.soon(keys):
                self._plant.trace.note("foreseen", key)
            self.flush()

    def is_settled(self, key: str) -> bool:
        """Whether all KV of a key has been copied out of its blocks."""
        with self._plant.lock:
            return self.sender.is_settled(key)

    def released(self) -> set[str]:
        """Requests whose blocks the engine may reuse, since the last call."""
        with self._plant.lock:
            found, self.sender.released = self.sender.released, set()
            return found

    def release(self, request_id: str) -> None:
        """Decode's half no longer needs the blocks of this request."""
        with self._plant.lock:
            self.sender.released.add(request_id)

    def _rows(self, pieces: Iterable[Piece]) -> tuple[list[int], list[int]]:
        blocks: list[int] = []
        addresses: list[int] = []
        for piece in pieces:
            blocks += piece.blocks
            addresses += self.staging.rows(piece.peer.kind, [piece.page], len(piece.blocks))
        return blocks, addresses

    # Copies

    def _go_on(self) -> None:
        """Start all copies that can start now, and send messages. The caller holds the lock."""
        groups: dict[tuple[_Link, Lane], list[Put]] = {}
        for put in self.sender.puts():
            link = self._links[put.peer.address]
            lane = link.lane or (self._beside if put.piece.beside else self._with_steps)
            groups.setdefault((link, lane), []).append(put)
        for (link, lane), puts in groups.items():
            link.moving += len(puts)
            lane.submit(functools.partial(self._move, link, puts))
        if not self._gathers_beside and self.sender.has_backlog():
            self._gathers_beside = True
            self._beside.submit(self._gather_beside)
        self.flush()

    def _gather_beside(self) -> None:
        plant, mark = self._plant, None
        with plant.lock:
            self._gathers_beside = False
            pieces = self.sender.gather()
            for piece in pieces:
                mark = plant.copier.gather_beside(*self._rows([piece]), piece.job.mark)
        if not pieces:
            return
        plant.copier.wait(mark)
        with plant.lock:
            self.sender.gathered(pieces, None, time.monotonic())
            self._go_on()

    def _move(self, link: _Link, puts: list[Put]) -> None:
        """Copy pages to decode, then send the messages about them. Runs in a lane."""
        plant = self._plant
        sizes = [len(put.piece.blocks) * plant.block_bytes for put in puts]
        moves = [Move(put.piece.page, put.page, size, put.piece.mark) for put, size in zip(puts, sizes, strict=True)]
        checksums = self._provoke(link.transport.kind, moves)
        try:
            if not link.broken:
                plant.stats.span("stage", "put", link.writer.write(moves))
                plant.stats.count("sent_bytes", link.transport.name, sum(sizes))
        except TransportError as error:
            self._break(link, str(error))
        with plant.lock:
            parts = self.sender.moved(puts, plant.block_bytes, time.monotonic(), checksums)
            link.channel.send(parts, time.monotonic())
            for part in parts:
                plant.trace.note("moved", part.key)
            link.moving -= len(puts)
            self._close_if_done(link)
            self._go_on()

    def _provoke(self, kind: str, moves: list[Move]) -> list[int] | None:
        """Inject the faults and compute the checksums that `Debug` asks for."""
        debug, staging = self._plant.settings.debug, self.staging.of(kind)
        if debug.delay_s:
            time.sleep(debug.delay_s)
        if debug.zero or debug.checksum:
            self._plant.copier.wait(moves[-1].mark)
        if debug.zero:
            for move in moves:
                staging.zero(move.source)
        return [zlib.crc32(staging.read(move.source, move.size)) for move in moves] if debug.checksum else None

    # Connections

    def push_opened(
        self, address: str, channel: Channel, welcome: Welcome, transport: Transport, writer: Writer
    ) -> None:
        """KV can now be sent to decode at this address."""
        with self._plant.lock:
            self.staging.of(transport.kind)
            peer = self.sender.up(address, welcome.boot, transport.kind, soon=transport.name in welcome.soon)
            lane = Lane(f"pd-put-{address}", self._plant.copier.enter_thread) if writer.alone else None
            link = self._links[address] = _Link(channel, peer, transport, writer, lane)
            channel.heard = lambda _channel, message: self._heard(link, message)
            channel.ended = lambda _channel, reason: self._break(link, reason)
            channel.open(time.monotonic())
            self._plant.stats.gauge("peer_up", f"{address} {transport.name}", 1)
            log.info("P2pConnector sends to %s over %s", address, transport.name)
            self._go_on()

    def push_failed(self, address: str, reason: str) -> None:
        with self._plant.lock:
            self.sender.down(address, f"decode at {address}: {reason}")
            log.warning("P2pConnector cannot send to %s: %s", address, reason)
            self._go_on()

    def _heard(self, link: _Link, message: Message) -> None:
        with self._plant.lock:
            link.channel.last_heard = time.monotonic()
            if isinstance(message, Ping) or link.broken:
                return
            if not self.sender.hear(link.peer.address, message):
                msg = f"{type(message).__name__} on a push connection"
                raise ProtocolError(msg)
            self._go_on()

    def _break(self, link: _Link, reason: str) -> None:
        with self._plant.lock:
            if link.broken:
                return
            link.broken = True
            del self._links[link.peer.address]
            self._plant.stats.gauge("peer_up", f"{link.peer.address} {link.transport.name}", 0)
            self._plant.stats.count("peer_lost", "decode")
            log.warning("P2pConnector lost decode at %s: %s", link.peer.address, reason)
            self.sender.down(link.peer.address, f"decode at {link.peer.address}: {reason}")
            link.writer.abort()
            self._close_if_done(link)
            self._go_on()
        self._loop.call(lambda: link.channel.close(reason))

    def _close_if_done(self, link: _Link) -> None:
        """Release a broken connection's memory once no copy writes to it."""
        if link.broken and not link.moving:
            (link.lane or self._beside).submit(link.writer.close)
            if link.lane is not None:
                link.lane.stop()

    def ask_accepted(self, channel: Channel) -> None:
        """A decode engine wants to ask."""
        with self._plant.lock:
            self._asks[channel.number] = channel
            channel.heard = self._asked
            channel.ended = lambda channel, _reason: self._ask_ended(channel)

    def _asked(self, channel: Channel, message: Message) -> None:
        with self._plant.lock:
            channel.last_heard = time.monotonic()
            if isinstance(message, Ping):
                return
            if not self.sender.asked(channel.number, message, time.monotonic()):
                msg = f"{type(message).__name__} on an ask connection"
                raise ProtocolError(msg)
            self._go_on()

    def _ask_ended(self, channel: Channel) -> None:
        with self._plant.lock:
            self._asks.pop(channel.number, None)
            self.sender.gone(channel.number)

    def flush(self) -> None:
        """Send the sender's messages. The caller holds the lock."""
        now = time.monotonic()
        messages, self.sender.messages = self.sender.messages, []
        for address, message in messages:
            if address in self._links:
                self._links[address].channel.send([message], now)
        answers, self.sender.answers = self.sender.answers, []
        for number, answer in answers:
            if number in self._asks:
                self._asks[number].send([answer], now)
        dial, self.sender.dial = self.sender.dial, []
        for address in dial:
            self._dial(address)
        outcomes, self.sender.outcomes = self.sender.outcomes, []
        for outcome in outcomes:
            self._plant.stats.count("sends", outcome)

    def tick(self, now: float) -> list[Channel]:
        """Give up keys that take too long; returns the open connections. The caller holds the lock."""
        self.sender.tick(now)
        self._go_on()
        for state, count in self._counts().items():
            self._plant.stats.gauge("staging_pages", state, count)
        return [*(link.channel for link in self._links.values()), *self._asks.values()]

    def _counts(self) -> dict[str, int]:
        return self.sender.counts()

    def stop(self) -> None:
        """Release everything, because the engine ends."""
        for link in list(self._links.values()):
            self._break(link, "this engine ends")
        for channel in list(self._asks.values()):
            self._loop.call(functools.partial(channel.close, "this engine ends"))
        for lane in (self._with_steps, self._beside, self._watch):
            if lane is not None:
                lane.stop()
                lane.join(5)
