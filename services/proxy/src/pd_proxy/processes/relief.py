"""New connections of a worker that stands still, or is being replaced, are given to the others.

The kernel goes on spreading connections over all listening sockets. The parent holds every one of them too, so it accepts what waits
at such a worker's, and passes the accepted sockets on.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Sequence
from typing import Final

from pd_proxy.processes.worker_process import WorkerProcess

# Workers say that they live every 0.1 s. One that is silent for so long gets no new connections until it speaks again.
PATIENCE_S: Final = 0.5
LOOK_S: Final = 0.1
# Of those that wait, so many are passed on before anything else comes to its turn.
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
                return  # nobody waits any more, or there is no descriptor; what waits is accepted later
            with connection:
                _pass_on(connection, able[next(self._turns) % len(able)])


def _pass_on(connection: socket.socket, worker: WorkerProcess) -> None:
    if worker.handover is None:
        return
    with contextlib.suppress(OSError):  # it ends at this moment, and the client sees its connection closed
        socket.send_fds(worker.handover, [b"\0"], [connection.fileno()])


def received(handover: socket.socket) -> list[socket.socket]:
    """A worker's side: the sockets that the parent has passed on."""
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
