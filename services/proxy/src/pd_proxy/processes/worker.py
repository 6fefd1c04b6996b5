"""A process that serves clients, one of several: `python -m pd_proxy.processes.worker DESCRIPTOR`, which only `worker_pool` starts.

It chooses engines, forwards requests and relays streams by itself. Its parent tells it about the engines, over the socket with that
descriptor; when the socket is closed, the worker ends. Only the parent handles signals, and tells its workers.
"""

import asyncio
import logging
import os
import signal
import socket
import sys

import uvloop

from pd_contracts import log
from pd_proxy.api.app import app_of
from pd_proxy.api.front import PassedOn, serve_front
from pd_proxy.api.passthrough import Passthrough
from pd_proxy.api.routes import Generating
from pd_proxy.background.deadlines import Deadlines
from pd_proxy.background.pace import Pace
from pd_proxy.processes.channel import Answered, Ask, Beat, Channel, Looked, News, Ready, Stop, Welcome
from pd_proxy.processes.forward import Forward
from pd_proxy.processes.handover import received
from pd_proxy.processes.prepare import prepare
from pd_proxy.processes.relief import LOOK_S
from pd_proxy.processes.server import LAST_WORDS_S, configure
from pd_proxy.processes.shared_counters import SharedCounters
from pd_proxy.processes.shared_parts import ProcessCounters
from pd_proxy.processes.worker_context import worker_context

logger = logging.getLogger(__name__)


class Worker:
    """Handles the parent's messages."""

    def __init__(self, channel: Channel, welcome: Welcome) -> None:
        """Nothing is served before `run`.

        Raises:
            OSError: if the file of keys cannot be read.
        """
        settings = welcome.settings
        counters = ProcessCounters(SharedCounters(welcome.counters, settings.proxy_workers + 1), welcome.number)
        self._channel = channel
        self._listener = socket.socket(fileno=welcome.listener)
        self._handover = socket.socket(fileno=welcome.handover)
        self._context = worker_context(settings, counters, channel.send, welcome.started)
        self._forward = Forward(channel.send, settings.give_up_s)
        self._shutdown = asyncio.Event()

    async def run(self) -> None:
        """Serve until the parent sends `Stop`, or is gone."""
        context = self._context
        app = app_of(
            context, *(part.blueprint() for part in (Generating(context), Passthrough(context), self._forward))
        )
        first = await self._channel.receive()
        if not isinstance(first, News):
            return  # the parent is gone already
        context.take(first)
        async with context.upstream, asyncio.TaskGroup() as group:
            loops = [group.create_task(loop) for loop in (self._listen(), self._report(), self._beat())]
            passed_on = PassedOn(self._handover, received)
            await serve_front(app, configure(context.settings), self._until_stopped, [self._listener], passed_on)
            await context.tasks.finish(context.settings.drain_timeout_s)
            for loop in loops:
                loop.cancel()

    async def _until_stopped(self) -> None:
        self._channel.send(Ready())
        await self._shutdown.wait()
        self._context.stop_soon()

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message:
                case News():
                    self._context.take(message)
                case Ask(number=number):
                    self._channel.send(self._context.report(asyncio.get_running_loop().time(), number))
                case Answered():
                    self._forward.answered(message)
                case Looked(number=number):
                    self._context.looked(number)
                case Stop():
                    self._shutdown.set()
        self._orphaned()

    def _orphaned(self) -> None:
        """The parent is gone, so the engines are no longer known: end the running requests with an error, and exit."""
        logger.critical("the parent is gone")
        self._context.end_all()
        self._forward.abandon()
        self._shutdown.set()
        asyncio.get_running_loop().call_later(LAST_WORDS_S, os._exit, 1)

    async def _beat(self) -> None:
        while True:
            self._channel.send(Beat())
            await asyncio.sleep(LOOK_S)

    async def _report(self) -> None:
        deadlines = Deadlines(self._context)
        pace = Pace(deadlines.period_s)
        while True:
            self._channel.send(self._context.report(asyncio.get_running_loop().time()))
            if await pace.on_time():
                deadlines.enforce()


async def work(descriptor: int) -> int:
    """Serve as the parent says; returns the exit status."""
    channel = await Channel.open(socket.socket(fileno=descriptor))
    welcome = await channel.receive()
    if not isinstance(welcome, Welcome):
        return 1  # the parent is gone already
    log.set_up(welcome.settings.log_level)
    try:
        worker = Worker(channel, welcome)
        await worker.run()
    except (OSError, ExceptionGroup):
        logger.critical("the worker has failed", exc_info=True)
        return 1
    return 0


def main() -> int:
    """Read the descriptor and serve."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    prepare()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work(int(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
