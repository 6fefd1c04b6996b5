"""One exchange with a pair of engines: prefill, hand-over, decode, with the rules that keep KV safe.

1. Decode gets a request only after prefill has answered 200, and only if it is still the process that got the KV.
2. Prefill runs in a task of its own, so a client that leaves cannot cancel it half-way. It is ended only after GIVE_UP_S, and
   what it may have pushed by then, or before it failed, is a debt (see 3). A client's request to decode follows in the same task.
3. KV that prefill pushed is consumed: if no client waits any more, or decode refused the request before running it, decode gets
   the same request for one token. If decode may have run it, the KV becomes a debt (`debts`): a P2pNccl decode that has consumed
   it would wait for it a second time, forever. Decode is never asked for KV more often than it was pushed.

Rules 2 and 3 are for connectors that leave KV behind. P2pConnector does not: its prefill may be cancelled without a debt.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from msgspec import Raw

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
from pd_proxy.tasks import result_of, tell

T = TypeVar("T")
# How long after its timeout a late prefill is ended. Until then it is evidence for the watchdog, which judges the engine once a
# second.
EVIDENCE_S: Final = 3.0
# How a request to decode can end before its answer has begun.
ENDS: Final = (ProxyError, TimeoutError, asyncio.CancelledError)


class Exchange:
    """Runs one plan with one pair.

    Attributes:
        prefilled: the body of prefill's 200; empty until it has arrived. `usage`: the usage in it, if any.
        handover: what it makes possible; None until then.
    """

    def __init__(self, context: Context, pair: Pair, plan: Plan, *, claim: Claim | None = None, tries: int = 0) -> None:
        """`claim` is room at decode; `tries` is how often repaying the debt has failed, 0 if this repays no debt."""
        self.pair = pair
        self.plan = plan
        self.prefilled = b""
        self.usage: Raw | None = None
        self.handover: HandOver | None = None
        self._context = context
        self._claim = claim
        self._tries = tries
        self._left = False  # nobody waits for prefill any more
        self._over: asyncio.Future[None] | None = None

    async def prefill(self) -> HandOver:
        """Run prefill alone; as `through`, and if the client leaves at its very end, decode consumes what it pushed."""

        async def itself(handover: HandOver) -> HandOver:
            return handover

        return await self.through(itself, lambda _, handover: self._context.tasks.spawn(self._drain(handover)))

    async def through(
        self,
        then: Callable[[HandOver], Coroutine[Any, Any, T]],
        let_go: Callable[["asyncio.Task[T]", HandOver], object],
    ) -> T:
        """Run prefill, and `then` with what it makes possible, in one task, which a client that leaves does not cancel: each further task
        would take turns of the event loop before decode is asked.

        If the client leaves before prefill's end, decode consumes what prefill pushes; later, `let_go` decides what becomes of the
        task. The claim is released at the end of it all.

        Raises:
            PrefillTimeoutError: after PREFILL_TIMEOUT_S; prefill itself may go on.
            UpstreamError: if prefill fails.
        """
        task = self._context.tasks.spawn(self._whole(then))
        self._over = task.get_loop().create_future()
        try:
            found = await result_of(
                task,
                self._context.settings.prefill_timeout_s,
                in_time=lambda: self.handover is not None,
                over=self._over,
            )
        except TimeoutError:
            self._leave(task, EVIDENCE_S)
            raise PrefillTimeoutError(f"{self.pair.prefill.name} did not answer within PREFILL_TIMEOUT_S") from None
        except asyncio.CancelledError:
            if self.handover is None:
                self._leave(task)
            else:
                let_go(cast("asyncio.Task[T]", task), self.handover)
            raise
        return cast("T", found)  # None only if nobody waits

    async def _whole(self, then: Callable[[HandOver], Coroutine[Any, Any, T]]) -> T | None:
        try:
            handover = self.handover = await self._prefill()
            if self._left:
                await self._drain(handover)
                return None
            return await then(handover)
        finally:
            self.release()
            if self._over is not None:
                tell(self._over)

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
            addresses = (engine.http_address, engine.zmq_address)
            self.usage = rewrite.checked(plan.endpoint, self.prefilled, engine.name, addresses).get("usage")
            return plan.receive(self.prefilled)
        except UpstreamError as error:
            # Prefill may have pushed before it failed, and decode would not get this request otherwise.
            if plan.stand_in is not None and not _never_began(error):
                address = self.pair.decode.zmq_address
                self._context.owe(Debt(address, plan.endpoint, plan.engine_id, plan.stand_in(), asked=False))
            raise

    def _leave(self, prefilling: "asyncio.Task[Any]", after_s: float = 0.0) -> None:
        """No client waits for this prefill any more; end it after `after_s` seconds if it may be aborted, else drain it at its end."""
        self._left = True
        if self.plan.abortable:
            asyncio.get_running_loop().call_later(after_s, prefilling.cancel)
            self.release()

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
