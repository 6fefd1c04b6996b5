"""A proxy of several processes: this one starts the workers, tells them who the engines are, and settles what one that dies leaves.

Everything that must exist once is here: discovery, health checks, canaries, the watchdog's verdicts, debts, and the answers that are
about the whole proxy. Clients' requests for tokens never pass through it.

Every worker has a listening socket of its own, which stays open here as well: what waits in a dead worker's is served by its successor,
and is not reset.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from pd_proxy.api.app import Proxy
from pd_proxy.kv.debts import Debt
from pd_proxy.processes.channel import Ask, Channel, Forwarded, News, Owed, Ready, Report, Stop, Unreachable, Welcome
from pd_proxy.processes.forward import answer
from pd_proxy.processes.ledger import Head
from pd_proxy.processes.parent import ParentContext
from pd_proxy.processes.spawn import spawned

logger = logging.getLogger(__name__)

# Workers hear of a change within that time.
NEWS_S: Final = 0.02
# A worker that does not answer is not waited for any longer than that, and is replaced after so many seconds of silence.
HEARD_S: Final = 0.5
SILENT_S: Final = 30
# Who lived for so long did not fail at its start.
STEADY_S: Final = 10.0
MAX_PAUSE_S: Final = 5.0
# Who has hung up has so long to end.
GOODBYE_S: Final = 5.0
# Beyond the time to drain, which clients' requests and then background work have.
MARGIN_S: Final = 5.0

_debt = msgspec.json.Decoder(Debt)


def pause_s(failures: int) -> float:
    """Seconds until a worker is replaced that ended at once, for the so-many-th time in a row."""
    return min(MAX_PAUSE_S, 0.1 * 2**failures) if failures else 0.0


class Member:
    """A worker and its successors."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        """`number` is that of its row in the ledger."""
        self.number = number
        self.listener = listener
        self.ready = asyncio.Event()
        self.silent_s = 0
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel | None = None
        self.asked: list[tuple[int, asyncio.Future[None]]] = []

    def answered(self, number: int) -> None:
        """It has heard everything up to the `number`-th question."""
        for asked, future in self.asked:
            if asked <= number and not future.done():
                future.set_result(None)
        self.asked = [(asked, future) for asked, future in self.asked if asked > number]

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                self.process.kill()


class WorkerPool:
    """All workers of a parent."""

    def __init__(self, app: Proxy, context: ParentContext, sockets: Sequence[socket.socket]) -> None:
        """Nobody works before `working`."""
        self._app = app
        self._context = context
        self._members = [Member(number, listener) for number, listener in enumerate(sockets, start=1)]
        self._stop = asyncio.Event()
        self._started = False
        self._told: News | None = None
        self._asked = 0
        context.tell_all = self._heard

    @contextlib.asynccontextmanager
    async def working(self, shutdown: asyncio.Event) -> AsyncIterator[None]:
        """Workers that serve, or `shutdown` is set already; at the end they finish what they have.

        Raises:
            OSError: if one ends before it serves.
        """
        loops = [asyncio.create_task(self._tell_news()), asyncio.create_task(self._listen_for_silence())]
        keepers = [asyncio.create_task(self._keep(member)) for member in self._members]
        try:
            await self._begin(keepers, shutdown)
            for task in (*loops, *keepers):
                task.add_done_callback(self._task_ended)
            yield
        finally:
            await self._end(keepers)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, *keepers, return_exceptions=True)

    async def _begin(self, keepers: Sequence["asyncio.Task[None]"], shutdown: asyncio.Event) -> None:
        ready = asyncio.gather(*(member.ready.wait() for member in self._members))
        leaving = asyncio.create_task(shutdown.wait())
        waited: list[asyncio.Future[Any]] = [ready, leaving, *keepers]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for future in (ready, leaving):
            future.cancel()
        await asyncio.gather(ready, leaving, return_exceptions=True)
        failed = [keeper for keeper in keepers if keeper.done()]
        self._started = not failed
        if failed:
            failed[0].result()
            msg = "a worker ended before it served"
            raise OSError(msg)

    async def _end(self, keepers: Sequence["asyncio.Task[None]"]) -> None:
        self._stop.set()
        for member in self._members:
            member.listener.close()
            if member.channel is not None:
                member.channel.send(Stop())
        patience = 2 * self._context.settings.drain_timeout_s + MARGIN_S if self._started else 0
        if patience:
            await asyncio.wait(keepers, timeout=patience)
        for member in self._members:
            member.kill()

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if not self._stop.is_set():
            self._context.loop_ended(task)

    async def _keep(self, member: Member) -> None:
        """Have this worker run until the end; replace it when it dies."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stop.is_set():
            began = loop.time()
            try:
                status = await self._live(member)
            except OSError as error:
                if not self._started:
                    raise
                logger.error("worker cannot be started", extra={"worker": member.number, "error": str(error)})  # noqa: TRY400
                status = -1
            if self._stop.is_set() or not self._started:
                return
            failures = 0 if loop.time() - began > STEADY_S else failures + 1
            logger.error("worker is replaced", extra={"worker": member.number, "status": status})
            with contextlib.suppress(TimeoutError):  # the pause is over
                await asyncio.wait_for(self._stop.wait(), pause_s(failures - 1))

    async def _live(self, member: Member) -> int:
        """One life of a worker, from its start to its end; returns its exit status."""
        context, listener = self._context, member.listener.fileno()
        process, ours = await spawned((context.ledger.descriptor, listener))
        channel = await Channel.open(ours)
        member.process, member.channel = process, channel
        channel.send(
            Welcome(
                settings=context.settings,
                number=member.number,
                ledger=context.ledger.descriptor,
                listener=listener,
                started=context.started,
            )
        )
        channel.send(self._tell())
        if self._stop.is_set():
            channel.send(Stop())
        await self._converse(member, channel)
        member.channel = None
        channel.close()
        await asyncio.wait([ending := asyncio.create_task(process.wait())], timeout=GOODBYE_S)
        member.kill()
        status = await ending
        self._bury(member)
        return status

    async def _converse(self, member: Member, channel: Channel) -> None:
        """Hear what a worker says, until its end."""
        context = self._context
        while (message := await channel.receive()) is not None:
            member.silent_s = 0
            match message:
                case Report():
                    context.sums.take(member.number, message)
                    member.answered(message.answers)
                case Forwarded():
                    context.tasks.spawn(self._answer(channel, message))
                case Owed(debt=debt):
                    context.owe(debt)
                case Unreachable(incarnation=incarnation, reason=reason):
                    for instance in context.registry.view():
                        if instance.incarnation == incarnation:
                            context.noted(context.registry.unhealthy(instance, reason, certain=True))
                case Ready():
                    member.ready.set()
                    logger.info("worker serves", extra={"worker": member.number})

    def _bury(self, member: Member) -> None:
        """Settle what a worker leaves: what it had claimed is free, what it had let go out is owed, what it had counted stays."""
        context = self._context
        ledger, number = context.ledger, member.number
        row, debts = ledger.rows[number], [_debt.decode(entry) for entry in ledger.journal(number).entries()]
        in_flight = row[Head.IN_FLIGHT]
        context.sums.bury(number, row[Head.REQUESTS], in_flight)
        ledger.clear(number)
        member.ready.clear()
        member.answered(self._asked)
        member.silent_s = 0
        for debt in debts:
            context.owe(debt)
        if not self._stop.is_set() and self._started:
            context.metrics.worker_ended(in_flight)
            logger.error("worker ended", extra={"worker": number, "requests": in_flight, "kv_owed": len(debts)})

    async def _answer(self, channel: Channel, asked: Forwarded) -> None:
        """A request that is about the whole proxy; nobody hears of a change from it that workers do not know yet."""
        probe = asked.path == "/health"  # which has to be quick even if a worker is not
        if not probe:
            await self._heard()
        answered = await answer(self._app, asked)
        if not probe and self._changed():
            await self._heard()
        channel.send(answered)

    async def _heard(self) -> None:
        self._tell()
        self._asked += 1
        futures = []
        for member in self._members:
            if member.channel is not None and member.ready.is_set():
                future = asyncio.get_running_loop().create_future()
                member.asked.append((self._asked, future))
                member.channel.send(Ask(number=self._asked))
                futures.append(future)
        if futures:
            await asyncio.wait(futures, timeout=HEARD_S)

    async def _tell_news(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(NEWS_S)

    def _changed(self) -> bool:
        context, told = self._context, self._told
        return (
            told is None or told.instances is not context.registry.view() or told.verdicts != context.trust.verdicts()
        )

    def _tell(self) -> News:
        """Let all workers know what has changed, if anything; returns what they know now."""
        context, told = self._context, self._told
        if told is not None and not self._changed():
            return told
        view = context.registry.view()
        slots = context.share.slots.assign({instance.incarnation for instance in view}, context.ledger.idle)
        self._told = told = News(instances=view, verdicts=context.trust.verdicts(), slots=dict(slots))
        for member in self._members:
            if member.channel is not None:
                member.channel.send(told)
        return told

    async def _listen_for_silence(self) -> None:
        """A worker whose loop stands still serves nobody, and does not end by itself."""
        while True:
            await asyncio.sleep(1)
            for member in self._members:
                member.silent_s += member.channel is not None
                if member.silent_s > SILENT_S:
                    logger.error("worker does not answer and is killed", extra={"worker": member.number})
                    member.kill()
