"""One way through a pair of engines: prefill, hand-over, decode, with the rules that keep KV safe.

1. Decode hears of a request only after prefill answered 200, and only if it is still the process that got the KV.
2. Prefill runs in a task of its own, so the client's leaving cannot cancel it half-way. It is ended only after GIVE_UP_S, and
   what it may have pushed by then, or before it failed, is a debt (see 3).
3. KV that prefill pushed is consumed: if nobody waits any more, or decode turned the request down before running it, decode
   gets the same request for one token. If decode may have run it, that is a debt (`debts`): a P2pNccl decode that has consumed
   its KV would wait for it a second time, forever. Decode is never asked for KV more often than it was pushed.

2 and 3 are for connectors that leave KV behind. P2pConnector does not: its prefill may be cancelled, and nothing is owed.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pd_proxy.context import Context
from pd_proxy.engines.pairing import Pair
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import (
    OutOfDescriptorsError,
    PrefillTimeoutError,
    ProxyError,
    RefusedError,
    RefusedInStreamError,
    RestartedError,
    UnreachableError,
    UpstreamError,
)
from pd_proxy.kv.budget import Claim
from pd_proxy.kv.debts import Debt
from pd_proxy.kv.transfer import HandOver, Plan
from pd_proxy.protocol import rewrite
from pd_proxy.request.ask import ask

# A prefill that answers too late is ended so long after its timeout. Until then it is the evidence by which the watchdog, which
# looks once a second, judges the engine.
EVIDENCE_S: Final = 3.0


class Exchange:
    """What one plan does with one pair.

    Attributes:
        prefilled: the body of prefill's 200; empty before it came.
    """

    def __init__(self, context: Context, pair: Pair, plan: Plan, *, claim: Claim | None = None, tries: int = 0) -> None:
        """`claim` is room at decode, `tries` how often a debt was repaid in vain before: 0 if this is about no debt."""
        self.pair = pair
        self.plan = plan
        self.prefilled = b""
        self._context = context
        self._claim = claim
        self._tries = tries

    async def prefill(self) -> HandOver:
        """Run prefill. If the client does not wait for its end, decode consumes what it pushes, and then the claim is given back.

        Raises:
            PrefillTimeoutError: after PREFILL_TIMEOUT_S; prefill itself may go on.
            UpstreamError: if it fails; the claim is given back.
        """
        task = self._context.tasks.spawn(self._prefill())
        try:
            async with asyncio.timeout(self._context.settings.prefill_timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            self._leave(task, EVIDENCE_S)
            raise PrefillTimeoutError(f"{self.pair.prefill.name} did not answer within PREFILL_TIMEOUT_S") from None
        except asyncio.CancelledError:
            self._leave(task)
            raise
        except ProxyError:
            self.release()
            raise

    async def decode(self, handover: HandOver, timeout_s: float) -> bytes:
        """Have decode answer in one piece within that time.

        Raises:
            ProxyError: if it fails; what becomes of the KV then is seen to.
            TimeoutError: likewise.
        """
        with self.owing(handover):
            async with asyncio.timeout(timeout_s):
                return await ask(self._context, self.pair.decode, self.plan.endpoint, handover.decode())

    def release(self) -> None:
        if self._claim is not None:
            self._claim.release()

    @contextmanager
    def owing(self, handover: HandOver) -> Iterator[None]:
        """See to the KV that decode was handed, if decode fails here or the client does not wait for its first byte.

        It is drained if decode surely did not run the request, or would only fail if it did (NIXL); otherwise it is a debt. Where
        a debt was to be repaid it is one again in any case.
        """
        try:
            yield
        except (ProxyError, TimeoutError, asyncio.CancelledError) as error:
            stand_in = handover.stand_in
            if isinstance(error, RefusedInStreamError):
                pass  # decode ran it
            elif stand_in is not None and (self._tries or not _never_ran(error)):
                debt = Debt(
                    self.pair.decode.zmq_address,
                    self.plan.endpoint,
                    handover.engine_id,
                    stand_in(),
                    tries=self._tries,
                )
                self._context.owe(debt)
            elif not self._tries and isinstance(error, ProxyError):
                self._context.tasks.spawn(self._drain(handover))
            raise

    def receiver(self) -> Instance:
        """The process that prefill pushed to, as it is now.

        Raises:
            RestartedError: if another one took its place; it would wait for KV that its predecessor got.
        """
        decode = self.pair.decode
        now = self._context.registry.current(decode)
        if now is None:
            raise RestartedError(f"{decode.name} restarted while prefill ran")
        return now

    async def _prefill(self) -> HandOver:
        plan, engine = self.plan, self.pair.prefill
        try:
            self.prefilled = await ask(self._context, engine, plan.endpoint, plan.prefill)
            rewrite.checked(plan.endpoint, self.prefilled, engine.name, (engine.http_address, engine.zmq_address))
            return plan.receive(self.prefilled)
        except UpstreamError as error:
            # It may have pushed before it failed, and decode will not hear of this request otherwise.
            if plan.stand_in is not None and not _never_began(error):
                address = self.pair.decode.zmq_address
                self._context.owe(Debt(address, plan.endpoint, plan.engine_id, plan.stand_in(), asked=False))
            raise

    def _leave(self, prefilling: "asyncio.Task[HandOver]", after_s: float = 0.0) -> None:
        """Nobody waits for this prefill any more; if it may be ended half-way, it is, after that time."""
        if not self.plan.abortable:
            self._drain_later(prefilling)
            return
        asyncio.get_running_loop().call_later(after_s, prefilling.cancel)
        self.release()

    def _drain_later(self, prefilling: "asyncio.Task[HandOver]") -> None:
        """Nobody waits for this prefill any more; what it will have pushed is consumed when it is done."""

        def drain_if_pushed(task: "asyncio.Task[HandOver]") -> None:
            work: asyncio.Task[Any] = task
            if not task.cancelled() and task.exception() is None:
                work = self._context.tasks.spawn(self._drain(task.result()))
            work.add_done_callback(lambda _: self.release())

        prefilling.add_done_callback(drain_if_pushed)

    async def _drain(self, handover: HandOver) -> None:
        """Have decode consume what prefill pushed and decode never ran. NIXL's KV that is not consumed has a lease, which ends."""
        if not handover.pushed:
            return
        drain = Exchange(self._context, self.pair, self.plan, tries=1)
        try:
            with drain.owing(handover):
                await ask(self._context, self.receiver(), self.plan.endpoint, handover.drain())
        except ProxyError:
            pass  # that is a debt now
        else:
            self._context.metrics.drained("done")


def _never_began(error: UpstreamError) -> bool:
    """Prefill did not get the request, or refused it with an error status."""
    return isinstance(error, UnreachableError | RefusedError) and not isinstance(error, RefusedInStreamError)


def _never_ran(error: BaseException) -> bool:
    """Decode did not get the request because of the proxy, or refused it as invalid; decode works and still holds the KV."""
    return isinstance(error, OutOfDescriptorsError) or (isinstance(error, RefusedError) and error.status < 500)
