"""One rank of an engine on the network: `core`'s sender and receiver, with threads, sockets and copies that carry out their decisions."""

import logging
import time
from collections.abc import Iterable

from pd_connector.core.orders import (
    Begin,
    Computed,
    Copy,
    Count,
    Drain,
    Drop,
    Ended,
    Expect,
    Forget,
    Load,
    Order,
    Park,
    Preempted,
    Release,
)
from pd_connector.net.channel import Channel
from pd_connector.net.doors import Doors
from pd_connector.net.incoming import Incoming
from pd_connector.net.loop import TICK_S, Loop
from pd_connector.net.outgoing import Outgoing
from pd_connector.net.plant import Plant
from pd_connector.net.transport import Transport, Writer
from pd_connector.wire.messages import Ping, Welcome

log = logging.getLogger(f"vllm.{__name__}")


class Station:
    """The network side of a worker. `sends` if its engine prefills for others, `takes` if it decodes for others."""

    def __init__(self, plant: Plant, *, sends: bool, takes: bool) -> None:
        self.plant = plant
        self._takes = takes
        self._sends = sends
        self._loop = Loop("pd-loop", self._tick)
        self.outgoing = Outgoing(plant, self._loop, lambda address: self._doors.dial(address, "push"))
        self.incoming = Incoming(plant, self._loop, lambda address: self._doors.dial(address, "ask"))
        transports = {transport.name: transport for transport in plant.transports}
        offers = self.incoming.offers() if takes else {}
        staging = self.outgoing.staging.of
        self._doors = Doors(
            self,
            identity=plant.identity,
            settings=plant.settings,
            loop=self._loop,
            offers=offers,
            transports=transports,
            staging=staging,
        )
        self._ticked = time.monotonic()

    def start(self, port: int) -> int:
        """Open the port; returns its number.

        Raises:
            OSError: if it is taken.
        """
        self._loop.start()
        return self._doors.listen(port)

    def stop(self) -> None:
        self._doors.close()
        self.outgoing.stop()
        self.incoming.stop()
        self._loop.stop()

    # The engine

    def do(self, order: Order) -> None:
        """Carry out an order that needs no step: all but those of `WITH_STEP`."""
        if isinstance(order, Begin | Ended | Forget):
            self.outgoing.do(order)
        elif isinstance(order, Expect | Park | Drop | Count):
            self.incoming.do(order)
        elif isinstance(order, Release):
            self.outgoing.release(order.request_id)
        else:
            msg = f"{order} needs a step"
            raise TypeError(msg)

    def before_step(self, orders: Iterable[Order]) -> set[int]:
        """Carry out the orders of a step before it. Returns blocks that could not be loaded."""
        empty: set[int] = set()
        for order in orders:
            match order:
                case Preempted():
                    pass  # done by `preempt`, before the step could overwrite anything
                case Load():
                    if not self.incoming.load(order):
                        empty.update(order.blocks[order.skip :])
                case Drain():
                    self.incoming.drain(order)
                case Copy():
                    self.incoming.copy(order)
                    if order.release:
                        self.outgoing.release(order.release)
                case Computed():
                    pass  # done by `after_step`
                case _:
                    self.do(order)
        return empty

    def preempt(self, orders: Iterable[Order]) -> None:
        """Called before a step runs: blocks of preempted requests may be overwritten from now on."""
        for order in orders:
            if isinstance(order, Preempted):
                self.outgoing.preempt(order)

    def after_some_layers(self, orders: Iterable[Order], share: float, following: float) -> None:
        """A share of a step's layers is launched; `following` is the share after which this is called next, or 1."""
        self.outgoing.foresee([order for order in _computed(orders) if order.last], share, following)

    def after_last_layer(self, orders: Iterable[Order]) -> None:
        """Send what a step computes, when the rest of the step, which leaves KV as it is, is still to be launched."""
        self.outgoing.save(_computed(orders), early=True)

    def after_step(self, orders: Iterable[Order], *, sent: bool = False) -> None:
        """Send what a step computes, after its computation was launched; `sent` if `after_last_layer` did that."""
        if sent:
            self.plant.copier.join()
        elif computed := _computed(orders):
            self.outgoing.save(computed)

    # The loop's thread

    def _tick(self, now: float) -> None:
        late, self._ticked = now - self._ticked > 4 * TICK_S, now
        settings = self.plant.settings
        with self.plant.lock:
            channels = [*self.outgoing.tick(now), *self.incoming.tick(now)]
        self._doors.tick(now)
        self.plant.trace.flush()
        for channel in channels:
            if now - channel.last_sent > settings.ping_s:
                channel.send([Ping()], now)
            # If this process was stopped for a while, it has not read the others' messages yet.
            if not late and now - channel.last_heard > settings.dead_after_s:
                channel.close(f"silent for {settings.dead_after_s:g} s")

    def takes(self, purpose: str) -> str:
        """Why a connection for this purpose is refused; empty if it is accepted."""
        if purpose == "push" and not self._takes:
            return "this engine takes no KV: its kv_role is kv_producer"
        if purpose == "ask" and not self._sends:
            return "this engine sends no KV: its kv_role is kv_consumer"
        return ""

    def push_opened(
        self, address: str, channel: Channel, welcome: Welcome, transport: Transport, writer: Writer
    ) -> None:
        """KV can now be sent to decode at this address."""
        self.outgoing.push_opened(address, channel, welcome, transport, writer)

    def push_failed(self, address: str, reason: str) -> None:
        self.outgoing.push_failed(address, reason)

    def ask_opened(self, address: str, channel: Channel) -> None:
        """Prefill at this address can now be asked for KV."""
        self.incoming.ask_opened(address, channel)

    def ask_failed(self, address: str, reason: str) -> None:
        self.incoming.ask_failed(address, reason)

    def push_accepted(self, channel: Channel, session: str, transport: Transport, address: str) -> None:
        self.incoming.push_accepted(channel, session, transport, address)

    def ask_accepted(self, channel: Channel) -> None:
        self.outgoing.ask_accepted(channel)

    def refused(self, address: str, reason: str) -> None:
        """An engine was refused, or refused this one."""
        log.error("P2pConnector cannot work with %s: %s", address, reason)
        self.plant.stats.count("refused", reason.partition(":")[0].partition(" is ")[0][:60])

    def fell_back(self, transport: str) -> None:
        """A connection could not use this transport, and uses a slower one."""
        self.plant.stats.count("fell_back", transport)


def _computed(orders: Iterable[Order]) -> list[Computed]:
    return [order for order in orders if isinstance(order, Computed)]
