"""NixlConnector: prefill keeps the KV and says where, decode fetches it.

After vLLM 0.23.0, `kv_connector/v1/nixl`: prefill's response carries `kv_transfer_params`, the proxy hands them to decode as they are,
decode fetches before the request may join the batch, and prefill frees the KV when it was fetched, given back, or its lease ran out.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine
from typing import Any

from pd_simulator.errors import ApiError, internal
from pd_simulator.kv_blocks import blocks_of
from pd_simulator.transfer.base import Move, Plan, Site, Transfer
from pd_simulator.transfer.kv_cache import ENTRY_BYTES
from pd_simulator.transfer.wire import Address, Frame, KvLinks, KvServer

_NEEDED = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


class NixlTransfer(Transfer):
    """Both ends of the fetch."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._engine_id = str(uuid.uuid4())
        self._server = KvServer(self._answer)
        self._links = KvLinks()
        self._kept: dict[str, tuple[bytes, asyncio.TimerHandle]] = {}
        self._fetched: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._server.start(self.site.bind_host, self.site.kv_port)

    async def close(self) -> None:
        """Stop listening, drop the peers and what is kept for them."""
        for task in self._tasks:
            task.cancel()
        for request_id in list(self._kept):
            self._drop(request_id)
        self._links.close()
        await self._server.close()

    def plan(self, move: Move) -> Plan:
        """A request without parameters is computed here, whatever the role: NIXL's engines are whole engines."""
        if move.params.get("do_remote_prefill"):
            missing = [name for name in _NEEDED if not move.params.get(name)]
            if missing:
                # vLLM logs a warning and lets the request wait forever.
                msg = f"kv_transfer_params lacks {', '.join(missing)}"
                raise ApiError(msg, param="kv_transfer_params")
            return Plan(external=len(move.prompt), fetches=True)
        return Plan(keeps=bool(move.params.get("do_remote_decode")))

    async def fetch(self, move: Move) -> bytes:
        """Fetch the KV from prefill; failing to is the end of the request (vLLM: `kv_load_failure_policy` "fail")."""
        self.books.waiting += 1
        try:
            frame, entries = await self._links.ask(
                _remote(move.params), Frame("pull", move.params["remote_request_id"])
            )
        except (OSError, asyncio.IncompleteReadError) as error:
            raise internal() from error
        finally:
            self.books.waiting -= 1
        if frame.command != "ok":
            raise internal()
        await self.take_turn(len(entries) // ENTRY_BYTES)
        self._fetched.add(move.request_id)
        self.books.arrive(entries)
        self.books.consumed += 1
        return entries

    def finished(self, move: Move, entries: bytes | None) -> dict[str, Any] | None:
        """Prefill: keep the KV and say where. Decode: give back what it never fetched."""
        if move.params.get("do_remote_prefill") and move.request_id not in self._fetched:
            self.rejected(move.params)
        self._fetched.discard(move.request_id)
        if entries is None:
            return None
        self._keep(move.request_id, entries)
        blocks = blocks_of(len(move.prompt))
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, blocks + 1))],
            "remote_engine_id": self._engine_id,
            "remote_request_id": move.request_id,
            "remote_host": self.site.host,
            "remote_port": self.site.kv_port,
            "tp_size": 1,
            "remote_num_tokens": len(move.prompt),
        }

    def rejected(self, params: dict[str, Any]) -> None:
        """Tell prefill that nobody will fetch."""
        if params.get("do_remote_prefill") and all(params.get(name) for name in _NEEDED):
            self._spawn(self._give_back(_remote(params), params["remote_request_id"]))

    async def _give_back(self, address: Address, request_id: str) -> None:
        # If prefill is gone, so is what it kept.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._links.ask(address, Frame("free", request_id))

    def _keep(self, request_id: str, entries: bytes) -> None:
        timer = asyncio.get_running_loop().call_later(self.site.lease_s, self._expire, request_id)
        self._kept[request_id] = (entries, timer)
        self.books.held += 1

    def _expire(self, request_id: str) -> None:
        self.books.expired += 1
        self.books.freed += 1
        self._drop(request_id)

    def _drop(self, request_id: str) -> bytes | None:
        entries, timer = self._kept.pop(request_id, (None, None))
        if timer is not None:
            timer.cancel()
            self.books.held -= 1
        return entries

    async def _answer(self, frame: Frame, payload: bytes) -> tuple[Frame, bytes]:  # noqa: ARG002 - the wire's interface
        entries = self._drop(frame.request_id)
        if entries is None:
            return Frame("missing"), b""
        if frame.command != "pull":
            self.books.freed += 1
            return Frame("ok"), b""
        sent = self.site.faults.outgoing_kv(entries)
        self.books.leave(sent)
        return Frame("ok"), sent

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _remote(params: dict[str, Any]) -> Address:
    return str(params["remote_host"]), int(params["remote_port"])
