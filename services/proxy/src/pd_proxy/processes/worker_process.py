"""A worker as its parent sees it: a process and its successors, which share its number and listening socket."""

import asyncio
import contextlib
import socket

from pd_proxy.processes.channel import Channel
from pd_proxy.processes.handover import Handover


class WorkerProcess:
    """A worker and its successors.

    Attributes:
        number: the number of its row in the shared counters, from 1.
        ready: set while clients can connect.
        has_served: clients could connect before, so connections may be waiting at its socket.
        heard_at: when its last message arrived, on the event loop's clock.
        handover: the way of other workers' connections to it.
    """

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.ready = asyncio.Event()
        self.has_served = False
        self.heard_at = 0.0
        self.handover: Handover | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel | None = None
        self._asked: list[tuple[int, asyncio.Future[None]]] = []

    def speaks(self, now: float, patience_s: float) -> bool:
        """Whether clients can connect and a message has arrived within `patience_s`."""
        return self.channel is not None and self.ready.is_set() and now - self.heard_at < patience_s

    def asks(self, number: int) -> "asyncio.Future[None]":
        """A future for the answer to the `number`-th question."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((number, future))
        return future

    def answered(self, number: int) -> None:
        """The worker has received everything up to the `number`-th question."""
        for asked, future in self._asked:
            if asked <= number and not future.done():
                future.set_result(None)
        self._asked = [(asked, future) for asked, future in self._asked if asked > number]

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                self.process.kill()
