"""Makes decode consume abandoned KV that it may still hold; see `debts`.

1. While a decode is stalled, the KV that it may be waiting for is pushed again: that can end the stall.
2. Once decode is ready, a probe goes through it. When the probe has ended, the engine has also ended every request that was closed
   before the probe began, so a request under an old id cannot meet an older one.
3. Then a short prompt is prefilled and decoded for one token under each debt's id: decode asks for the KV as often as it was pushed.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Final

from pd_contracts.names import Role
from pd_proxy.engines.pairing import Pair, compatible
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import PrefillTimeoutError, ProxyError
from pd_proxy.kv.debts import Debt
from pd_proxy.kv.transfer import Plan, again, plan, stand_in
from pd_proxy.protocol.body import encoded
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.request.exchange import Exchange
from pd_proxy.supervisor import Supervisor

logger = logging.getLogger(__name__)

# How many debts are repaid at once: enough not to take long, too few to delay clients.
AT_ONCE: Final = 8
# How many debts that a decode may be waiting for are pushed before it is examined again.
A_ROUND: Final = 64
# The longest pause, in probe intervals, between attempts at an engine that stays stalled. Pauses grow because each attempt leaves KV there, too.
PAUSES: Final = (1, 2, 4, 8, 12)


class Repayment:
    """Repays debts: one task per engine, from its first debt until it has none."""

    def __init__(self, context: Supervisor) -> None:
        self._context = context
        self._at_work: set[str] = set()

    async def run(self) -> None:
        """Forever start a task for each engine with a new debt. These are the context's tasks, which outlive this one."""
        context = self._context
        while True:
            await context.new_debt.wait()
            context.new_debt.clear()
            for address in context.debts.addresses() - self._at_work:
                self._at_work.add(address)
                context.tasks.spawn(self._repay(address))

    async def _repay(self, address: str) -> None:
        debts, rounds, before = self._context.debts, 0, State.LOST
        try:
            while debts.at(address):
                await asyncio.sleep(self._context.settings.probe_interval_s * PAUSES[min(rounds, len(PAUSES) - 1)])
                decode = self._at(address)
                if decode is None:
                    debts.forget(address)
                    return
                rounds = rounds if decode.state is before else 0
                before = decode.state
                if (pair := self._pair(decode)) is not None:
                    rounds = 0 if await self._round(pair, debts.at(address)) else rounds + 1
        finally:
            self._at_work.discard(address)

    async def _round(self, pair: Pair, owed: list[Debt]) -> bool:
        """Do what can be done now; returns False if that did not help."""
        if pair.decode.state is State.SUSPECT:
            # What is pushed may be lost again, so every debt gets another turn.
            for debt in [debt for debt in owed if debt.asked][:A_ROUND]:
                await self._push(pair, debt)
            return False
        if pair.decode.state is not State.READY:
            return True
        if not await self._probe(pair):
            return False
        for start in range(0, len(owed), AT_ONCE):
            await asyncio.gather(*(self._settle(pair, debt) for debt in owed[start : start + AT_ONCE]))
        return True

    def _at(self, address: str) -> Instance | None:
        found = [i for i in self._context.registry.view() if i.role is Role.DECODE and i.zmq_address == address]
        return found[-1] if found else None

    def _pair(self, decode: Instance) -> Pair | None:
        view = self._context.registry.view()
        able = [i for i in view if i.role is Role.PREFILL and i.state is State.READY and compatible(i, decode)]
        return Pair(able[next(self._context.turns) % len(able)], decode) if able else None

    async def _push(self, pair: Pair, debt: Debt) -> None:
        """Push KV that a stalled decode may be waiting for; later rounds make it consume that KV."""
        self._context.debts.later(debt)
        try:
            await Exchange(self._context, pair, again(debt)).prefill()
        except ProxyError as error:
            logger.debug("KV could not be pushed again", extra={"instance": pair.decode.name, "error": repr(error)})

    async def _probe(self, pair: Pair) -> bool:
        model = next(model for model in pair.prefill.models if model in pair.decode.models)
        path = Endpoint.COMPLETIONS
        try:
            return await self._through(pair, plan(pair, path, stand_in(path, {"model": encoded(model)}), {}))
        except ProxyError:
            return False

    async def _settle(self, pair: Pair, debt: Debt) -> None:
        self._context.debts.take(debt)
        tried = replace(debt, tries=debt.tries + 1)
        try:
            if await self._through(pair, again(debt), tries=tried.tries):
                self._context.metrics.drained("done")
        except PrefillTimeoutError:
            pass  # what prefill still pushes is drained once it has finished
        except ProxyError:
            self._context.owe(tried)

    async def _through(self, pair: Pair, plan: Plan, *, tries: int = 0) -> bool:
        """Run one exchange; returns False if decode failed, which leaves a debt.

        Raises:
            ProxyError: if prefill failed.
        """
        exchange = Exchange(self._context, pair, plan, tries=tries)
        handover = await exchange.prefill()
        try:
            await exchange.decode(handover, self._context.settings.decode_stall_timeout_s)
        except (ProxyError, TimeoutError) as error:
            logger.debug("KV could not be used up", extra={"instance": pair.decode.name, "error": repr(error)})
            return False
        return True
