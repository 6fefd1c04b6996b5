"""Passes new connections of a worker that has stalled, or is being replaced, to the other workers.

The kernel goes on spreading connections over all listening sockets. The parent holds all of these sockets, too. So it accepts the
connections that wait at such a worker's socket, and passes them on. Each is passed on until a worker has received it; no more are accepted
than workers have room for, so the others go on waiting at the socket.
"""

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from pd_proxy.processes.handover import AT_ONCE, Handover
from pd_proxy.processes.worker_process import WorkerProcess

# Workers send a sign of life every 0.1 s. One that is silent for this long gets no new connections until it is heard again.
PATIENCE_S: Final = 0.5
LOOK_S: Final = 0.1


class Relief:
    """Watches the workers of a parent."""

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self._workers = workers
        self._relieved: set[WorkerProcess] = set()
        self._held: deque[socket.socket] = deque()
        self._turns = itertools.count()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                able = self._able()
                for worker in self._workers:
                    if worker.has_served and worker not in able and able:
                        self._relieve(loop, worker)
                    else:
                        self._trust(loop, worker)
                self._pass_on()
                await asyncio.sleep(LOOK_S)
        finally:
            for worker in list(self._relieved):
                self._trust(loop, worker)

    def close(self) -> None:
        """Close the connections that no worker could receive; there will be no more workers."""
        while self._held:
            self._held.popleft().close()

    def hold(self, connections: Iterable[socket.socket]) -> None:
        """Pass these connections on as soon as a worker has room for them."""
        self._held += connections
        self._pass_on()

    def _able(self) -> list[WorkerProcess]:
        now = asyncio.get_running_loop().time()
        return [worker for worker in self._workers if worker.speaks(now, PATIENCE_S)]

    def _relieve(self, loop: asyncio.AbstractEventLoop, worker: WorkerProcess) -> None:
        if worker.handover is not None:
            self._held += worker.handover.take_back()
        if worker not in self._relieved:
            self._relieved.add(worker)
            worker.listener.setblocking(False)
            loop.add_reader(worker.listener.fileno(), self._accept, worker)

    def _trust(self, loop: asyncio.AbstractEventLoop, worker: WorkerProcess) -> None:
        if worker in self._relieved:
            self._relieved.discard(worker)
            loop.remove_reader(worker.listener.fileno())

    def _accept(self, worker: WorkerProcess) -> None:
        for _ in range(AT_ONCE):
            if not self._pass_on():
                break
            try:
                connection, _address = worker.listener.accept()
            except BlockingIOError:
                return  # nothing waits any more
            except OSError:
                break  # there is no descriptor, or the client has left
            self._held.append(connection)
        else:
            self._pass_on()
            return
        self._trust(asyncio.get_running_loop(), worker)  # until the next look

    def _pass_on(self) -> bool:
        """Pass on what is held; returns whether another connection can be passed on."""
        ways = [worker.handover for worker in self._able() if worker.handover is not None]
        while self._held and self._given(self._held[0], ways):
            self._held.popleft().close()
        return bool(ways) and not self._held

    def _given(self, connection: socket.socket, ways: Sequence[Handover]) -> bool:
        first = next(self._turns) if ways else 0
        return any(ways[(first + more) % len(ways)].give(connection) for more in range(len(ways)))
