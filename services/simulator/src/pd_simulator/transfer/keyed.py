"""P2pConnector, by `pd_connector`'s own decisions, threads and sockets: only the KV in its blocks and the steps around it are simulated.

Both halves of the connector are in this process: `core`'s plan and loads, which vLLM's scheduler would ask, and a `Station`, which a worker
would have. KV lies in blocks of 16 tokens here too, and travels over TCP. Unlike vLLM's, a prompt leaves in one go, in the step that completes it.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterable
from typing import Any, Final

from pd_connector import settings as connector_settings
from pd_connector.core.loads import Loads, Verdict
from pd_connector.core.orders import (
    WITH_STEP,
    Computed,
    Copy,
    Drain,
    Drop,
    Event,
    Failed,
    Landing,
    Order,
    Pressed,
    Ready,
)
from pd_connector.core.plan import Plan as Sends
from pd_connector.memory.pages import HostMemory
from pd_connector.net.handshake import Identity
from pd_connector.net.plant import Plant
from pd_connector.net.station import Station
from pd_connector.net.tcp import TcpTransport
from pd_connector.wire import params
from pd_simulator.errors import ApiError
from pd_simulator.kv_blocks import BLOCK_TOKENS, blocks_of
from pd_simulator.transfer.base import Move, Plan, Site, Transfer
from pd_simulator.transfer.blocks import BLOCK_BYTES, Blocks
from pd_simulator.transfer.kv_accounting import Books
from pd_simulator.transfer.kv_cache import ENTRY_BYTES

PAGE_BLOCKS: Final = 32
_PAGE_BYTES: Final = PAGE_BLOCKS * BLOCK_BYTES
# The KV of 64,000 tokens on its way, at each end; real engines have gigabytes, in which about half as many have room.
_PAGES: Final = 128
# As vLLM's scheduler, which asks in every round.
_ROUND_S: Final = 0.25
_RELEASE_POLL_S: Final = 0.02
# More than any simulated engine has.
_KEEP_BLOCKS: Final = 1 << 16


class KeyedTransfer(Transfer):
    """Both ends: any engine may prefill for others and decode for them."""

    sends_beside = True

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._address = f"{site.host}:{site.kv_port}"
        self._blocks = Blocks()
        self._sends = Sends(BLOCK_TOKENS, _KEEP_BLOCKS)
        self._loads = Loads(1, fail=False, block_size=BLOCK_TOKENS)
        self._of_request: dict[str, tuple[int, ...]] = {}
        self._loaded: dict[str, tuple[int, ...]] = {}  # of requests that another one may come in the place of
        self._empty: set[int] = set()  # blocks whose KV was to come while others waited for room, and did not
        self._arrived: dict[str, asyncio.Event] = {}
        self._released: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._station = self._make_station()

    def _make_station(self) -> Station:
        site = self.site
        identity = Identity(
            uuid.uuid4().hex,
            self._address,
            0,
            {"model": site.model, "KV layout": "simulated", "block": str(BLOCK_BYTES)},
        )
        settings = connector_settings.load(
            {
                "host": site.host,
                "transports": ["tcp"],
                "load_timeout_s": site.load_timeout_s,
                "early_s": site.lease_s,
                "keep_s": site.lease_s,
            }
        )
        plant = Plant(
            identity=identity,
            settings=settings,
            block_bytes=BLOCK_BYTES,
            page_blocks=PAGE_BLOCKS,
            copier=self._blocks,
            transports=(TcpTransport(identity.boot, identity.address),),
            memory=lambda _kind, _use: HostMemory(_PAGES, _PAGE_BYTES),
            report=self._report,
        )
        return Station(plant, sends=True, takes=True)

    async def start(self) -> None:
        """Listen on the KV port, and watch for blocks that are free again."""
        self._loop = asyncio.get_running_loop()
        self._station.start(self.site.kv_port)
        self._released = self._loop.create_task(self._release())

    async def close(self) -> None:
        if self._released is not None:
            self._released.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._released
        await asyncio.to_thread(self._station.stop)

    # A request's life

    def plan(self, move: Move) -> Plan:
        """What a request's `pd` asks for; a wrong one makes it an ordinary request, as in the connector."""
        try:
            wish = params.parse(move.params)
        except params.ParamsError:
            return Plan()
        if isinstance(wish, params.Prefill):
            to = None if wish.to == self._address else wish.to
            self._tell(self._sends.add(move.request_id, params.kv_key(wish.key, move.prompt), to, len(move.prompt)))
            return Plan(sends=True)
        return self._decode(move, wish) if wish is not None else Plan()

    def _decode(self, move: Move, wish: params.Decode) -> Plan:
        length = len(move.prompt)
        tokens = min(wish.tokens or length, length - 1 if wish.follows else length)
        key = params.kv_key(wish.key, move.prompt[:tokens])
        external = min(tokens, length - 1)
        local = wish.source == self._address
        if external < 1:
            self._tell([] if local else [Drop(key, "not needed")])
            return Plan()
        orders = self._loads.add(
            move.request_id,
            key,
            source="" if local else wish.source,
            prompt=length,
            tokens=tokens,
            follows=wish.follows,
            now=time.monotonic(),
        )
        self._arrived[key] = self._arrived.get(key) or asyncio.Event()
        self._tell(orders)
        return Plan(external=external, fetches=True)

    async def fetch(self, move: Move) -> bytes | None:
        """Wait until the KV is here, or will not come; then the prompt is computed here."""
        key = self._loads.key_of(move.request_id) or ""
        self.books.waiting += 1
        self.books.waited += 1
        try:
            await self._inject_faults(key)
            while (found := self._verdict(move, key)).verdict is Verdict.WAIT:
                await self._news(key)
        finally:
            self.books.waiting -= 1
            self._forget_news(key)
        entries = await self._settle(move, found.tokens, found.verdict)
        self._go_on(move)
        return entries

    async def _inject_faults(self, key: str) -> None:
        """Lost KV is noticed after the load timeout, KV without room at once; the prompt is then computed here."""
        faults = self.site.faults
        await asyncio.sleep(faults.slow_kv_s + faults.drop_kv * self.site.load_timeout_s)
        if faults.drop_kv or faults.out_of_memory:
            self._loads.inbox.append((0, Failed(key, "a fault on purpose")))

    def _verdict(self, move: Move, key: str) -> Any:
        computing, kept = self._sends.computes(key), self._sends.keeps(key)
        return self._loads.verdict(move.request_id, 0, time.monotonic(), computing=computing, kept=kept)

    async def _news(self, key: str) -> None:
        arrived = self._arrived.setdefault(key, asyncio.Event())
        arrived.clear()
        with contextlib.suppress(TimeoutError):  # the next round looks in any case
            async with asyncio.timeout(_ROUND_S):
                await arrived.wait()

    async def _settle(self, move: Move, tokens: int, verdict: Verdict) -> bytes | None:
        """Bring in the KV that is here; None if there is none."""
        blocks = self._blocks.reserve(blocks_of(tokens))
        orders = self._loads.allocated(move.request_id, blocks, 0, tokens if verdict is not Verdict.PLAIN else 0)
        self._tell(order for order in orders if not isinstance(order, WITH_STEP))
        with_step = [order for order in orders if isinstance(order, WITH_STEP)]
        copies = any(isinstance(order, Copy) for order in orders)
        empty = self._station.before_step(with_step)
        if with_step and isinstance(with_step[0], Drain):
            empty |= await self._drain(move.request_id, blocks)
        entries = self._blocks.read(blocks)
        if self._loads.token(move.request_id)[0] is None:
            self._blocks.take(blocks)
        else:
            self._loaded[move.request_id] = blocks
        if verdict is Verdict.PLAIN or empty or not entries:
            return None
        if not copies:
            await self.take_turn(tokens)
            self.books.arrive(entries)
            self.books.consumed += 1
        return entries[: tokens * ENTRY_BYTES]

    async def _drain(self, request_id: str, blocks: tuple[int, ...]) -> set[int]:
        """Landing memory is short: take the KV as it comes. Returns the blocks that stayed empty."""
        try:
            while self._loads.is_draining(request_id):
                self._go_on_draining()
                await asyncio.sleep(_RELEASE_POLL_S)
        except asyncio.CancelledError:  # its client left
            self._go_on_draining(ended=[request_id])
            self._blocks.take(blocks)
            raise
        finally:
            empty = self._empty.intersection(blocks)
            self._empty -= empty
        return empty

    def _go_on_draining(self, ended: Iterable[str] = ()) -> None:
        """Take what has come for any request since the last time."""
        done, empty = self._station.incoming.drained(ended)
        self._empty |= empty
        for request_id in done:  # once the events that the station reported before have been noted
            asyncio.get_running_loop().call_soon(self._loads.drained, request_id)

    def _go_on(self, move: Move) -> None:
        """Prefill's token takes the place holder's place, if one was to follow.

        Raises:
            ApiError: if it did not come. vLLM's engine ends the answer at once, with a reason that begins with `pd:`.
        """
        token, missing = self._loads.token(move.request_id)
        if token is not None:
            move.prompt[-1] = token
        elif missing:
            msg = f"pd: {missing}"
            raise ApiError(msg, status=500)

    async def save(self, move: Move, entries: bytes) -> None:
        """Hand a prompt's KV to the station, which sends it beside the next steps."""
        key = self._sends.key_of(move.request_id)
        if key is None:
            return  # another answer to the same prompt sends it
        entries = self.site.faults.outgoing_kv(entries)
        blocks = self._of_request[move.request_id] = self._blocks.put(entries)
        self._station.after_step(
            order
            for order in self._sends.scheduled(move.request_id, blocks, len(move.prompt), anew=True)
            if isinstance(order, Computed)
        )
        self.books.leave(entries.ljust(len(blocks) * BLOCK_BYTES, b"\0"))  # whole blocks travel

    def finished(self, move: Move, entries: bytes | None) -> dict[str, Any] | None:  # noqa: ARG002  the interface
        """Let go of a request; prefill says what it has."""
        self._forget_news(self._loads.key_of(move.request_id) or "")
        hold = move.aborted and self._loads.hold(move.request_id, time.monotonic())
        if not hold:
            self._blocks.take(self._loaded.pop(move.request_id, ()))
        orders, outcome = self._loads.finished(move.request_id)
        self._tell(orders)
        try:
            wish = params.parse(move.params)
        except params.ParamsError:
            return None
        if isinstance(wish, params.Prefill):
            return self._ended(move, wish)
        return params.answer(wish.key, outcome=outcome) if wish is not None and outcome else None

    def _ended(self, move: Move, wish: params.Prefill) -> dict[str, Any] | None:
        key = self._sends.key_of(move.request_id)
        settled = key is not None and self._station.outgoing.is_settled(key)
        finish = self._sends.finished(move.request_id, move.token, settled=settled)
        if finish is None:
            return None
        self._tell(finish.orders)
        if key is not None:
            self._loads.computed_here(key, move.token)
            self._wake(key)
            if not finish.hold:
                self._free(move.request_id)
        return params.answer(wish.key, blocks=finish.blocks, tokens=len(move.prompt))

    def rejected(self, params_: dict[str, Any]) -> None:
        """Nothing was begun, and nothing waits: decode that is not coming is noticed by time."""

    def peers(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for label, up in self._station.plant.stats.gauges("peer_up").items():
            address, transport = label.split(" ")
            found[address, transport] = up
        return found

    def report(self) -> Books:
        """With what lies in landing memory and in blocks that are kept."""
        self.books.held = len(self._of_request) + len(self._station.incoming.receiver)
        return self.books

    # Between the halves

    def _report(self, event: Event) -> None:
        """From any of the station's threads."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note, event)

    def _note(self, event: Event) -> None:
        self._loads.inbox.append((0, event))
        if isinstance(event, Pressed):
            for arrived in self._arrived.values():
                arrived.set()
        elif isinstance(event, Landing | Ready | Failed):
            self._wake(event.key)

    def _forget_news(self, key: str) -> None:
        """Wake the other requests that wait for this key."""
        if (arrived := self._arrived.pop(key, None)) is not None:
            arrived.set()

    def _wake(self, key: str) -> None:
        if (arrived := self._arrived.get(key)) is not None:
            arrived.set()

    def _tell(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self._station.do(order)

    async def _release(self) -> None:
        """Blocks of finished prompts are free when their KV has left them."""
        while True:
            self._tell(self._loads.expired(time.monotonic()))
            released = self._station.outgoing.released()
            self._sends.released(released)
            for request_id in released:
                self._free(request_id)
            await asyncio.sleep(_RELEASE_POLL_S)

    def _free(self, request_id: str) -> None:
        self._blocks.take(self._of_request.pop(request_id, ()))
        self._blocks.take(self._loaded.pop(request_id, ()))
