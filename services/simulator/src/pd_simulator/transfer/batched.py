"""P2pNcclConnector with KV_BATCHED, after pd_engine.batched_connector: one message per request, and nobody waits inside a step.

Prefill sends beside its next steps, in the order of its prompts; decode takes a request up when its KV is here, or computes the prompt itself
when that does not come in time. KV that nobody waits for any more is dropped when it comes.
"""

import asyncio

from pd_contracts.names import Role
from pd_simulator.transfer.base import Move, Plan, Site
from pd_simulator.transfer.p2p import P2pTransfer, prefill_address


class BatchedTransfer(P2pTransfer):
    """Both ends of the push."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._sending: asyncio.Task[None] | None = None
        self._declined: set[str] = set()

    async def close(self) -> None:
        """Send no more, then as upstream's."""
        if self._sending is not None:
            self._sending.cancel()
        await super().close()

    def plan(self, move: Move) -> Plan:
        """Decode fetches outside the step; what it needs nothing of is dropped."""
        if self.site.role is not Role.DECODE:
            return super().plan(move)
        prefill_address(move.request_id)
        if len(move.prompt) < 2:
            self._decline(move.request_id)
            return Plan()
        self._declined.discard(move.request_id)
        self._wanted.add(move.request_id)
        return Plan(external=len(move.prompt) - 1, fetches=True)

    async def fetch(self, move: Move) -> bytes | None:
        """Wait until prefill has pushed the KV of this id, but not for ever."""
        try:
            async with asyncio.timeout(self.site.load_timeout_s):
                entries, _ = await self.load(move)
        except TimeoutError:
            self._wanted.discard(move.request_id)
            self._decline(move.request_id)
            return None
        self._drop(move.request_id)
        # Memory ran out when it came: vLLM is told that these blocks are empty.
        return entries or None

    async def save(self, move: Move, entries: bytes) -> None:
        """Send it when what was sent before has gone."""
        before = self._sending
        self._sending = asyncio.get_running_loop().create_task(self._send(move, entries, before))

    async def _send(self, move: Move, entries: bytes, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.wait([before])
        await super().save(move, entries)

    def finished(self, move: Move, entries: bytes | None) -> None:
        """A request that ends before its KV is here does not want it any more."""
        if move.request_id in self._wanted and move.request_id not in self._loaded:
            self._decline(move.request_id)
        super().finished(move, entries)

    def _decline(self, request_id: str) -> None:
        self._declined.add(request_id)
        self._drop_declined()

    def _drop_declined(self) -> None:
        for request_id in self._declined & self._store.keys():
            self._declined.discard(request_id)
            self._drop(request_id)

    def _stored(self, request_id: str) -> None:
        self._drop_declined()
        # Its decode was restarted, or the proxy that knew of it: nobody will ask.
        asyncio.get_running_loop().call_later(2 * self.site.load_timeout_s, self._drop_orphan, request_id)

    def _drop_orphan(self, request_id: str) -> None:
        if request_id not in self._wanted:
            self._drop(request_id)
