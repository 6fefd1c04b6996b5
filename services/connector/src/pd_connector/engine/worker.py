"""The workers' half: a `Station`, made when vLLM has its KV cache, and called around each step."""

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from pd_connector.core.orders import Load, Order
from pd_connector.engine.compat import Facts, RefusalError, input_ids, own_host, tensor_rank
from pd_connector.engine.hardware import Hardware, hardware_of
from pd_connector.engine.layers import Layers
from pd_connector.engine.local import Mail, Mailed, Resident, publish, withdraw
from pd_connector.memory.layout import Layer, Layout, LayoutError, layout_of
from pd_connector.net.handshake import Identity
from pd_connector.net.plant import Plant
from pd_connector.net.station import Station
from pd_connector.net.trace import Trace
from pd_connector.settings import Settings
from pd_connector.wire.params import of_rank

log = logging.getLogger(f"vllm.{__name__}")


class WorkerHalf:
    """One worker of an engine."""

    def __init__(self, facts: Facts, settings: Settings) -> None:
        self._facts = facts
        self._settings = settings
        self._station: Station | None = None
        self._mail = Mail(0)
        self._empty: set[int] = set()
        self._layers = Layers()
        self._input_ids: Any = None

    def register(self, kv_caches: Mapping[str, Any]) -> None:
        """Open the port and reserve memory for KV in transit.

        Raises:
            RefusalError: if KV like this cannot be moved, or there is no memory for it.
        """
        facts, settings, rank = self._facts, self._settings, tensor_rank()
        self._mail = Mail(rank)
        try:
            layout = layout_of(layers(kv_caches), facts.blocks)
        except LayoutError as error:
            msg = f"P2pConnector cannot move this model's KV: {error}"
            raise RefusalError(msg) from error
        if facts.layers_once:
            self._layers = Layers(kv_caches)
        page_blocks = max(1, settings.page_bytes // layout.row_bytes)
        address = f"{settings.host or own_host()}:{facts.port}"
        schema = {**facts.schema, "KV layout": layout.digest, "blocks of a page": str(page_blocks)}
        identity = Identity(uuid.uuid4().hex, address, rank, schema)
        self._station = self._build(identity, layout, page_blocks, hardware_of(kv_caches, layout, settings))
        port = int(of_rank(address, rank).rpartition(":")[2])
        try:
            self._station.start(port)
        except OSError as error:
            msg = f"P2pConnector cannot listen at port {port} (kv_port plus rank {rank}): {error}"
            raise RefusalError(msg) from error
        if facts.ranks == 1:
            self._input_ids = input_ids() if facts.ids_alone else None
            publish(facts.engine_id, Resident(self._station, self._mail, late_tokens=self._input_ids is not None))
        log.info(
            "P2pConnector listens at %s; %d bytes of KV per block, %d blocks per page",
            address,
            layout.row_bytes,
            page_blocks,
        )

    def _build(self, identity: Identity, layout: Layout, page_blocks: int, hardware: Hardware) -> Station:
        every = hardware.transports(identity)
        plant = Plant(
            identity=identity,
            settings=self._settings,
            block_bytes=layout.row_bytes,
            page_blocks=page_blocks,
            copier=hardware.copier,
            transports=tuple(every[name] for name in self._settings.transports if name in every),
            memory=lambda kind, use: hardware.memory(
                kind, self._pages(use, layout.row_bytes, page_blocks), layout.row_bytes * page_blocks
            ),
            report=self._mail.post,
            trace=Trace(self._settings.debug.trace),
        )
        if not plant.transports:
            msg = (
                f"P2pConnector: none of `transports` ({', '.join(self._settings.transports)}) works on this device; "
                f"available: {', '.join(every)}"
            )
            raise RefusalError(msg)
        station = Station(plant, sends=self._facts.sends, takes=self._facts.takes)
        if self._facts.sends:
            # Allocated now, so that the start fails if there is no memory for it.
            station.outgoing.staging.of(plant.transports[0].kind)
        return station

    def _pages(self, use: str, row_bytes: int, page_blocks: int) -> int:
        step = -(-self._facts.step_tokens // self._facts.block_size) * row_bytes
        wanted = self._settings.landing_bytes if use == "landing" else self._settings.staging_bytes or 2 * step
        return max(2, -(-wanted // (row_bytes * page_blocks)))

    # Steps

    def before_overwriting(self, orders: Iterable[Order]) -> None:
        """Prepare for a step that may overwrite the blocks of preempted requests."""
        if self._station is not None:
            self._station.preempt(orders)

    def before_step(self, orders: list[Order]) -> None:
        """Copy KV that has arrived into its blocks."""
        if self._station is not None:
            empty = self._station.before_step(orders)
            for order in orders:
                if isinstance(order, Load) and order.soon:
                    empty = self._settle(order, empty)
            self._empty |= empty
            self._layers.begin(orders)

    def _settle(self, order: Load, empty: set[int]) -> set[int]:
        """Tell the scheduler's half of a request whose KV was to come within this step. Returns the blocks to report as empty.

        vLLM cannot compute those that are without it: it schedules a request's next step before it reads this one's result, and its V2
        runner never goes back.
        """
        scheduler, blocks = self._mail.scheduler, order.blocks[order.skip :]
        if scheduler is None:
            return empty
        if blocks[0] in empty:
            scheduler.lost(order.request_id, blocks)
            return empty if self._facts.fails else empty.difference(blocks)
        token = scheduler.came(order.request_id)
        if token is not None:
            # The request is alone in its step, which computes nothing but this token.
            self._input_ids[:1].fill_(token)
        return empty

    def after_layer(self, name: str, orders: list[Order]) -> None:
        """A layer's KV of this step is launched; after the last layer it can be sent."""
        wrote = self._layers.wrote(name, orders)
        if self._station is None:
            return
        if wrote:
            self._station.after_last_layer(orders)
        elif self._layers.milestone is not None:
            self._station.after_some_layers(orders, *self._layers.milestone)

    def after_step(self, orders: list[Order]) -> None:
        """The whole step is launched."""
        if self._station is not None:
            self._station.after_step(orders, sent=self._layers.end(orders))

    def finished(self, ended: Iterable[str]) -> tuple[set[str], set[str]]:
        """Requests whose blocks the engine may reuse, and requests whose KV has arrived."""
        if self._station is None:
            return set(), set()
        done, empty = self._station.incoming.drained(ended)
        self._empty |= empty
        return self._station.outgoing.released(), done

    def empty_blocks(self) -> set[int]:
        """Blocks whose KV did not arrive, since the last call."""
        found, self._empty = self._empty, set()
        return found

    def mailed(self) -> list[Mailed]:
        """Events for a scheduler in another process."""
        return self._mail.take()

    def counted(self) -> dict[str, Any] | None:
        """The counters since the last call."""
        return None if self._station is None else self._station.plant.stats.take()

    def stop(self) -> None:
        if self._station is not None:
            withdraw(self._facts.engine_id)
            self._station.stop()


def layers(kv_caches: Mapping[str, Any]) -> list[Layer]:
    """Addresses, shapes and strides of vLLM's tensors.

    Raises:
        RefusalError: for a value that is not a tensor, such as the state of a Mamba layer.
    """
    found: list[Layer] = []
    for name, tensor in kv_caches.items():
        if not hasattr(tensor, "data_ptr"):
            msg = f"P2pConnector cannot move the state of {name}, because it is not KV"
            raise RefusalError(msg)
        found.append(
            Layer(
                name,
                tensor.data_ptr(),
                tuple(tensor.shape),
                tuple(tensor.stride()),
                tensor.element_size(),
                str(tensor.dtype),
            )
        )
    return found
