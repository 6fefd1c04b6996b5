"""One exchange with a pair of engines: prefill, hand-over, decode, with the rules that keep KV safe.

1. Decode gets a request only after prefill has answered 200, and only if it is still the process that got the KV.
2. Prefill runs in a task of its own, so a client that leaves cannot cancel it half-way. It is ended only after GIVE_UP_S, and
   what it may have pushed by then, or before it failed, is a debt (see 3).
3. KV that prefill pushed is consumed: if no client waits any more, or decode refused the request before running it, decode gets
   the same request for one token. If decode may have run it, the KV becomes a debt (`debts`): a P2pNccl decode that has consumed
   it would wait for it a second time, forever. Decode is never asked for KV more often than it was pushed.

Rules 2 and 3 are for connectors that leave KV behind. P2pConnector does not: its prefill may be cancelled without a debt.
"""

import asyncio
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
from pd_proxy.tasks import result_of

# How long after its timeout a late prefill is ended. Until then it is evidence for the watchdog, which judges the engine once a
# second.
EVIDENCE_S: Final = 3.0
# How a request to decode can end before its answer has begun.
ENDS: Final = (ProxyError, TimeoutError, asyncio.CancelledError)


class Exchange:
    """Runs one plan with one pair.

    Attributes:
        prefilled: the body of prefill's 200; empty until it has arrived.
    """

    def __init__(self, context: Context, pair: Pair, plan: Plan, *, claim: Claim | None = None, tries: int = 0) -> None:
        """`claim` is room at decode; `tries` is how often repaying the debt has failed, 0 if this repays no debt."""
        self.pair = pair
        self.plan = plan
        self.prefilled = b""
        self._context = context
        self._claim = claim
        self._tries = tries

    async def prefill(self) -> HandOver:
        """Run prefill. If the client leaves before its end, decode consumes what it pushes, and then the claim is released.

        Raises:
            PrefillTimeoutError: after PREFILL_TIMEOUT_S; prefill itself may go on.
            UpstreamError: if it fails; the claim is released.
        """
        task = self._context.tasks.spawn(self._prefill())
        try:
            return await result_of(task, self._context.settings.prefill_timeout_s)
        except TimeoutError:
            self._leave(task, EVIDENCE_S)
            raise PrefillTimeoutError(f"{self.pair.prefill.name} did not answer within PREFILL_TIMEOUT_S") from None
        except asyncio.CancelledError:
            self._leave(task)
            raise
        except Exception:  # also an unexpected one: nothing else would release the claim
            self.release()
            raise

    async def decode(self, handover: HandOver, timeout_s: float) -> bytes:
        """Have decode answer without streaming, within `timeout_s`.

        Raises:
            ProxyError: if it fails; its KV is then drained or becomes a debt.
            TimeoutError: if it is late; the same holds for its KV.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await ask(self._context, self.pair.decode, self.plan.endpoint, handover.decode())
        except ENDS as error:
            self.owe(handover, error)
            raise

    def release(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def owe(self, handover: HandOver, error: BaseException) -> None:
        """Take care of the KV that decode was given: decode has failed with one of ENDS, or the client has left before its first byte.

        The KV is drained if decode certainly did not run the request, or if a second attempt would only fail (NIXL); otherwise it
        becomes a debt. If this exchange repays a debt, it always becomes a debt again.
        """
        stand_in = handover.stand_in
        if isinstance(error, RefusedInStreamError):
            return  # decode has run the request
        if stand_in is not None and (self._tries or not _never_ran(error)):
            address, endpoint = self.pair.decode.zmq_address, self.plan.endpoint
            self._context.owe(Debt(address, endpoint, handover.engine_id, stand_in(), tries=self._tries))
        elif not self._tries and isinstance(error, ProxyError):
            self._context.tasks.spawn(self._drain(handover))

    def receiver(self) -> Instance:
        """The decode process that prefill pushed to, in its present state.

        Raises:
            RestartedError: if another process took its place, which would wait for KV that its predecessor got.
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
            # Prefill may have pushed before it failed, and decode would not get this request otherwise.
            if plan.stand_in is not None and not _never_began(error):
                address = self.pair.decode.zmq_address
                self._context.owe(Debt(address, plan.endpoint, plan.engine_id, plan.stand_in(), asked=False))
            raise

    def _leave(self, prefilling: "asyncio.Task[HandOver]", after_s: float = 0.0) -> None:
        """No client waits for this prefill any more; end it after `after_s` seconds if it may be aborted, else drain it."""
        if not self.plan.abortable:
            self._drain_later(prefilling)
            return
        asyncio.get_running_loop().call_later(after_s, prefilling.cancel)
        self.release()

    def _drain_later(self, prefilling: "asyncio.Task[HandOver]") -> None:
        """No client waits for this prefill any more; what it pushes is consumed once it has finished."""

        def drain_if_pushed(task: "asyncio.Task[HandOver]") -> None:
            work: asyncio.Task[Any] = task
            if not task.cancelled() and task.exception() is None:
                work = self._context.tasks.spawn(self._drain(task.result()))
            work.add_done_callback(lambda _: self.release())

        prefilling.add_done_callback(drain_if_pushed)

    async def _drain(self, handover: HandOver) -> None:
        """Have decode consume what prefill pushed for a request that decode never ran. NIXL frees such KV itself when its lease ends."""
        if not handover.pushed:
            return
        drain = Exchange(self._context, self.pair, self.plan, tries=1)
        try:
            await ask(self._context, self.receiver(), self.plan.endpoint, handover.drain())
        except ENDS as error:
            drain.owe(handover, error)
            if not isinstance(error, ProxyError):
                raise
        else:
            self._context.metrics.drained("done")


def _never_began(error: UpstreamError) -> bool:
    """Prefill did not get the request, or refused it with an error status."""
    return isinstance(error, UnreachableError | RefusedError) and not isinstance(error, RefusedInStreamError)


def _never_ran(error: BaseException) -> bool:
    """Decode did not get the request because of the proxy, or refused it as invalid; it works and still holds the KV."""
    return isinstance(error, OutOfDescriptorsError) or (isinstance(error, RefusedError) and error.status < 500)
