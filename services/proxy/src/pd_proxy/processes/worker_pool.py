"""A proxy of several processes: the parent starts the workers, and cleans up after a worker that dies.

The parent has everything that must exist once: discovery, health checks, canaries, the watchdog's verdicts, debts, and answers about
the whole proxy. Clients' requests for tokens do not pass through it.

Every worker has a listening socket of its own, which the parent keeps open, too. So connections that wait at a dead worker's socket
are not reset, and its successor serves them.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from pd_proxy.api.app import Proxy
from pd_proxy.background.pace import Pace
from pd_proxy.kv.debts import Debt
from pd_proxy.processes.channel import (
    Channel,
    Forwarded,
    LookAgain,
    Looked,
    Owed,
    Ready,
    Report,
    Stop,
    Unreachable,
    Welcome,
)
from pd_proxy.processes.forward import answer
from pd_proxy.processes.handover import Handover
from pd_proxy.processes.parent import Parent
from pd_proxy.processes.relief import Relief
from pd_proxy.processes.shared_counters import Head
from pd_proxy.processes.spawn import spawned
from pd_proxy.processes.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

# A worker is replaced after this many seconds of silence; new connections go to others long before (`relief`).
SILENT_S: Final = 30
# A worker is silent until it serves; on a busy machine a start takes seconds.
START_S: Final = 120
# A worker that lived for this long did not fail at its start.
STEADY_S: Final = 10.0
MAX_PAUSE_S: Final = 5.0
# The time that a worker has to exit once its socket is closed.
GOODBYE_S: Final = 5.0
# In addition to the time to drain, which clients' requests and then background work have.
MARGIN_S: Final = 5.0

_debt = msgspec.json.Decoder(Debt)


def pause_s(failures: int) -> float:
    """The pause in seconds before a worker is replaced that has failed at its start `failures` times in a row."""
    return min(MAX_PAUSE_S, 0.1 * 2**failures) if failures else 0.0


class WorkerPool:
    """All workers of a parent."""

    def __init__(self, app: Proxy, context: Parent) -> None:
        """`app` answers requests about the whole proxy. Workers start in `working`."""
        self._app = app
        self._context = context
        self._workers = context.workers
        self._relief = Relief(context.workers)
        self._stop = asyncio.Event()
        self._started = False

    @contextlib.asynccontextmanager
    async def working(self, shutdown: asyncio.Event) -> AsyncIterator[None]:
        """Start the workers; returns once they serve, or `shutdown` is set. At the end they finish their requests.

        Raises:
            OSError: if a worker ends before it serves.
        """
        loops = [asyncio.create_task(self._context.briefing.run()), asyncio.create_task(self._listen_for_silence())]
        relief = asyncio.create_task(self._relief.run())
        keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        try:
            await self._begin(keepers, shutdown)
            for task in (*loops, relief, *keepers):
                task.add_done_callback(self._task_ended)
            yield
        finally:
            relief.cancel()
            await asyncio.gather(relief, return_exceptions=True)
            await self._end(keepers)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, *keepers, return_exceptions=True)
            self._relief.close()

    async def _begin(self, keepers: Sequence["asyncio.Task[None]"], shutdown: asyncio.Event) -> None:
        ready = asyncio.gather(*(worker.ready.wait() for worker in self._workers))
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
        for worker in self._workers:
            worker.listener.close()
            if worker.channel is not None:
                worker.channel.send(Stop())
        patience = 2 * self._context.settings.drain_timeout_s + MARGIN_S if self._started else 0
        if patience:
            await asyncio.wait(keepers, timeout=patience)
        for worker in self._workers:
            worker.kill()

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if not self._stop.is_set():
            self._context.loop_ended(task)

    async def _keep(self, worker: WorkerProcess) -> None:
        """Keep this worker running until the shutdown; replace it when it dies."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stop.is_set():
            began = loop.time()
            try:
                status = await self._live(worker)
            except OSError as error:
                if not self._started:
                    raise
                logger.error("worker cannot be started", extra={"worker": worker.number, "error": str(error)})  # noqa: TRY400
                status = -1
            if self._stop.is_set() or not self._started:
                return
            failures = 0 if loop.time() - began > STEADY_S else failures + 1
            logger.error("worker ended and is replaced", extra={"worker": worker.number, "status": status})
            with contextlib.suppress(TimeoutError):  # the pause is over
                await asyncio.wait_for(self._stop.wait(), pause_s(failures - 1))

    async def _live(self, worker: WorkerProcess) -> int:
        """One life of a worker, from its start to its end; returns its exit status."""
        context, listener, handover = self._context, worker.listener.fileno(), Handover()
        with contextlib.closing(handover):
            number = handover.theirs.fileno()
            process, ours = await spawned((context.shared.descriptor, listener, number))
            channel = await Channel.open(ours)
            worker.process, worker.channel, worker.handover = process, channel, handover
            worker.heard_at = asyncio.get_running_loop().time()
            channel.send(
                Welcome(
                    settings=context.settings,
                    number=worker.number,
                    counters=context.shared.descriptor,
                    listener=listener,
                    handover=number,
                    started=context.started,
                )
            )
            channel.send(context.briefing.tell())
            if self._stop.is_set():
                channel.send(Stop())
            await self._converse(worker, channel)
            worker.channel = worker.handover = None
            channel.close()
            self._relief.hold(handover.take_back())
            await asyncio.wait([ending := asyncio.create_task(process.wait())], timeout=GOODBYE_S)
            worker.kill()
            status = await ending
            self._relief.hold(handover.take_back())
        self._settle(worker)
        return status

    async def _converse(self, worker: WorkerProcess, channel: Channel) -> None:
        """Handle a worker's messages until it ends."""
        context, loop = self._context, asyncio.get_running_loop()
        while (message := await channel.receive()) is not None:
            worker.heard_at = loop.time()
            match message:
                case Report():
                    context.reports.take(worker.number, message)
                    worker.answered(message.answers)
                case Forwarded():
                    context.tasks.spawn(self._answer(channel, message))
                case LookAgain(number=number):
                    context.tasks.spawn(self._look(channel, number))
                case Owed(debt=debt):
                    context.owe(debt)
                case Unreachable(incarnation=incarnation, reason=reason):
                    for instance in context.registry.view():
                        if instance.incarnation == incarnation:
                            context.unreachable(instance, reason)
                case Ready():
                    worker.ready.set()
                    worker.has_served = True
                    logger.info("worker serves", extra={"worker": worker.number})

    def _settle(self, worker: WorkerProcess) -> None:
        """Clean up after a worker: its claims are released, its KV in flight becomes debts, its counts stay in the sums."""
        context, number = self._context, worker.number
        row, debt_log = context.shared.rows[number], context.shared.debt_log(number)
        debts, in_flight = [_debt.decode(entry) for entry in debt_log.entries()], row[Head.IN_FLIGHT]
        context.reports.ended(number, row[Head.REQUESTS], in_flight)
        context.shared.clear(number)
        worker.ready.clear()
        context.briefing.ended(worker)
        for debt in debts:
            context.owe(debt)
        if not self._stop.is_set() and self._started:
            context.metrics.worker_ended(in_flight)
            logger.error("worker ended", extra={"worker": number, "requests": in_flight, "kv_owed": len(debts)})

    async def _answer(self, channel: Channel, asked: Forwarded) -> None:
        """Answer a request about the whole proxy, after workers know every change that the answer shows."""
        briefing = self._context.briefing
        probe = asked.path == "/health"  # must be answered quickly even if a worker is slow
        if not probe:
            await briefing.heard()
        answered = await answer(self._app, asked)
        if not probe and briefing.changed():
            await briefing.heard()
        channel.send(answered)

    async def _look(self, channel: Channel, number: int) -> None:
        """Ask the engines for a worker whose client wants an unknown model; the news is sent before the answer."""
        await self._context.look_again()
        self._context.briefing.tell()
        channel.send(Looked(number=number))

    async def _listen_for_silence(self) -> None:
        """Kill workers whose event loop has stalled: they serve no client, and do not end by themselves."""
        pace = Pace(1.0)
        while True:
            if not await pace.on_time():
                continue
            now = asyncio.get_running_loop().time()
            for worker in self._workers:
                patience_s = SILENT_S if worker.ready.is_set() else START_S
                if worker.channel is not None and now - worker.heard_at > patience_s:
                    logger.error("worker does not respond and is killed", extra={"worker": worker.number})
                    worker.kill()
