"""Passes new connections of a worker that has stalled, or is being replaced, to the other workers.

The kernel goes on spreading connections over all listening sockets. The parent holds all of these sockets, too. So it accepts the
connections that wait at such a worker's socket, and passes them on.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Sequence
from typing import Final

from pd_proxy.processes.worker_process import WorkerProcess

# Workers send a sign of life every 0.1 s. One that is silent for this long gets no new connections until it is heard again.
PATIENCE_S: Final = 0.5
LOOK_S: Final = 0.1
# How many waiting connections are passed on before the event loop runs anything else.
AT_ONCE: Final = 64


class Relief:
    """Watches the workers of a parent."""

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self._workers = workers
        self._relieved: set[WorkerProcess] = set()
        self._turns = itertools.count()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                now = loop.time()
                able = [worker for worker in self._workers if worker.speaks(now, PATIENCE_S)]
                for worker in self._workers:
                    if worker.has_served and worker not in able and able:
                        self._relieve(loop, worker)
                    else:
                        self._trust(loop, worker)
                await asyncio.sleep(LOOK_S)
        finally:
            for worker in list(self._relieved):
                self._trust(loop, worker)

    def _relieve(self, loop: asyncio.AbstractEventLoop, worker: WorkerProcess) -> None:
        if worker not in self._relieved:
            self._relieved.add(worker)
            worker.listener.setblocking(False)
            loop.add_reader(worker.listener.fileno(), self._accept, worker)

    def _trust(self, loop: asyncio.AbstractEventLoop, worker: WorkerProcess) -> None:
        if worker in self._relieved:
            self._relieved.discard(worker)
            loop.remove_reader(worker.listener.fileno())

    def _accept(self, worker: WorkerProcess) -> None:
        now = asyncio.get_running_loop().time()
        able = [other for other in self._workers if other.speaks(now, PATIENCE_S)]
        for _ in range(AT_ONCE if able else 0):
            try:
                connection, _address = worker.listener.accept()
            except OSError:
                return  # nothing waits any more, or there is no descriptor; the rest is accepted later
            with connection:
                _pass_on(connection, able[next(self._turns) % len(able)])


def _pass_on(connection: socket.socket, worker: WorkerProcess) -> None:
    if worker.handover is None:
        return
    with contextlib.suppress(OSError):  # the worker ends at this moment, and the client sees its connection closed
        socket.send_fds(worker.handover, [b"\0"], [connection.fileno()])


def received(handover: socket.socket) -> list[socket.socket]:
    """The worker's side: the sockets that the parent has passed on."""
    found = []
    for _ in range(AT_ONCE):
        try:
            data, descriptors, _, _ = socket.recv_fds(handover, 1, 1)
        except OSError:
            break  # no more for now
        found += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not data:
            break
    return found
