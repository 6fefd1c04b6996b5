"""P2pNcclConnector: prefill pushes KV to the decode engine that the request id names.

After vLLM 0.23.0, `kv_connector/v1/p2p`: the id carries both addresses; both engines key the KV by the id that the engine made of
it; prefill's step ends when everything it has to send was taken; decode's step is blocked until what it has to load is there,
without a limit; and decode lets go of KV only when the request with that id ends.
"""

import asyncio
import logging
import re
import time
from typing import Any

from pd_contracts.names import Role
from pd_simulator.errors import ApiError
from pd_simulator.transfer.base import Move, Plan, Site, Transfer
from pd_simulator.transfer.kv_accounting import Books
from pd_simulator.transfer.kv_cache import ENTRY_BYTES
from pd_simulator.transfer.wire import Address, Frame, KvLinks, KvServer

# The connector's own patterns (`parse_request_id`), greedy and unanchored as they are.
_DECODE = re.compile(r"___decode_addr_(.*):(\d+)")
_PREFILL = re.compile(r"___prefill_addr_(.*):(\d+)___")
_RETRY_S = 0.2

log = logging.getLogger(__name__)


def decode_address(request_id: str) -> Address:
    """Where prefill shall push to.

    Raises:
        ApiError: if the id names no decode engine.
    """
    return _address(_DECODE, request_id)


def prefill_address(request_id: str) -> Address:
    """Whence decode expects its KV.

    Raises:
        ApiError: if the id names no prefill engine.
    """
    return _address(_PREFILL, request_id)


def _address(pattern: re.Pattern[str], request_id: str) -> Address:
    match = pattern.search(request_id)
    if match is None:
        # vLLM raises in the worker here, which kills the engine (#44062). A simulator that died of a stray request would only
        # be in the way, so it refuses.
        msg = f"Request id {request_id} does not contain hostname and port"
        raise ApiError(msg)
    return match[1], int(match[2])


class P2pTransfer(Transfer):
    """Both ends of the push."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._server = KvServer(self._answer)
        self._links = KvLinks()
        self._store: dict[str, tuple[bytes, float]] = {}
        self._loaded: set[str] = set()
        self._wanted: set[str] = set()
        self._arrival = asyncio.Condition()

    async def start(self) -> None:
        await self._server.start(self.site.bind_host, self.site.kv_port)

    async def close(self) -> None:
        """Stop listening and drop the peers."""
        self._links.close()
        await self._server.close()

    def plan(self, move: Move) -> Plan:
        """Prefill sends; decode loads all but the last token's KV, so that a prompt of one token needs nothing."""
        if self.site.role is Role.DECODE:
            prefill_address(move.request_id)
            self._wanted.add(move.request_id)
            return Plan(external=len(move.prompt) - 1)
        address = decode_address(move.request_id)
        if move.max_tokens != 1:
            # vLLM's producer asserts on a second token and the engine dies (#33092).
            msg = f"a prefill engine with P2pNcclConnector writes one token, but max_tokens is {move.max_tokens}"
            raise ApiError(msg, param="max_tokens")
        return Plan(sends=True, peer=hash(address))

    async def load(self, move: Move) -> tuple[bytes, float]:
        """Wait until prefill has pushed the KV of this id."""
        async with self._arrival:
            if move.request_id not in self._store:
                self.books.waiting += 1
                self.books.waited += 1
                try:
                    await self._arrival.wait_for(lambda: move.request_id in self._store)
                finally:
                    self.books.waiting -= 1
        self._loaded.add(move.request_id)
        return self._store[move.request_id]

    async def save(self, move: Move, entries: bytes) -> None:
        """Push, and wait until decode has taken it; while decode cannot be reached this engine hangs, as vLLM's does."""
        address = decode_address(move.request_id)
        payload = self.site.faults.outgoing_kv(entries)
        attempts = 0
        while True:
            try:
                await self._links.ask(address, Frame("put", move.request_id), payload)
            except (OSError, asyncio.IncompleteReadError) as error:
                if attempts == 0:
                    log.warning(
                        "decode does not take KV, waiting", extra={"request": move.request_id, "error": str(error)}
                    )
                attempts += 1
                await asyncio.sleep(_RETRY_S)
            else:
                self.books.leave(payload)
                return

    def finished(self, move: Move, entries: bytes | None) -> dict[str, Any] | None:  # noqa: ARG002 - the interface
        """Drop what was received for this id."""
        self._drop(move.request_id)
        self._loaded.discard(move.request_id)
        self._wanted.discard(move.request_id)
        return None

    def _drop(self, request_id: str) -> None:
        """Give back the room of what came for an id."""
        if self._store.pop(request_id, None) is not None:
            self.books.held -= 1
            if request_id in self._loaded:
                self.books.consumed += 1
            else:
                self.books.freed += 1

    def report(self) -> Books:
        """The books; KV that lies here without a request, and has for long, is leaked: the engine never drops it."""
        before = time.monotonic() - self.site.leak_s
        stale = (request_id for request_id, (_, since) in self._store.items() if since <= before)
        self.books.leaked = sum(request_id not in self._wanted for request_id in stale)
        return self.books

    def _stored(self, request_id: str) -> None:
        """KV came; upstream's connector keeps it until a request with its id ends."""

    async def _answer(self, frame: Frame, payload: bytes) -> tuple[Frame, bytes]:
        if frame.command != "put":
            return Frame("missing"), b""
        faults = self.site.faults
        await asyncio.sleep(faults.slow_kv_s)
        await self.take_turn(len(payload) // ENTRY_BYTES)
        self.books.arrive(payload)
        if faults.drop_kv:
            self.books.freed += 1
            return Frame("ok"), b""
        if faults.out_of_memory:
            payload = b""
        if frame.request_id in self._store:
            self.books.freed += 1
        else:
            self.books.held += 1
        async with self._arrival:
            self._store[frame.request_id] = (payload, time.monotonic())
            self._stored(frame.request_id)
            self._arrival.notify_all()
        return Frame("ok"), b""
