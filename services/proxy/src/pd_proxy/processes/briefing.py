"""Tells workers which engines there are: every change within NEWS_S, or at once if a caller waits until all workers know it."""

import asyncio
from collections.abc import Sequence
from typing import Final

from pd_proxy.engines.registry import Registry
from pd_proxy.engines.trust import Trust
from pd_proxy.processes.channel import Ask, News
from pd_proxy.processes.shared_parts import ProcessCounters
from pd_proxy.processes.worker_process import WorkerProcess

NEWS_S: Final = 0.02
# The longest wait for a worker's answer; a worker that has been silent for as long is not asked.
HEARD_S: Final = 0.5
SILENT_S: Final = 1.0


class Briefing:
    """Sends the registry's instances and the canaries' verdicts to all workers."""

    def __init__(
        self, registry: Registry, trust: Trust, counters: ProcessCounters, workers: Sequence[WorkerProcess]
    ) -> None:
        """`counters` are the parent's; all processes use their slots for engines."""
        self._registry = registry
        self._trust = trust
        self._counters = counters
        self._workers = workers
        self._told: News | None = None
        self._asked = 0

    async def run(self) -> None:
        """Send every change, forever."""
        while True:
            self.tell()
            await asyncio.sleep(NEWS_S)

    async def heard(self) -> None:
        """Wait until all workers know the present state of the registry and have reported since; at most for HEARD_S."""
        self.tell()
        self._asked += 1
        futures, now = [], asyncio.get_running_loop().time()
        for worker in self._workers:
            if worker.channel is not None and worker.speaks(now, SILENT_S):
                futures.append(worker.asks(self._asked))
                worker.channel.send(Ask(number=self._asked))
        if futures:
            await asyncio.wait(futures, timeout=HEARD_S)

    def ended(self, worker: WorkerProcess) -> None:
        """A worker has ended; do not wait for its answers."""
        worker.answered(self._asked)

    def changed(self) -> bool:
        """Whether anything has changed that workers have not been told."""
        told = self._told
        return told is None or told.instances is not self._registry.view() or told.verdicts != self._trust.verdicts()

    def tell(self) -> News:
        """Send all workers what has changed, if anything; returns what they know now."""
        if self._told is not None and not self.changed():
            return self._told
        view = self._registry.view()
        counters = self._counters
        slots = counters.slots.assign({instance.incarnation for instance in view}, counters.shared.idle)
        self._told = told = News(instances=view, verdicts=self._trust.verdicts(), slots=dict(slots))
        for worker in self._workers:
            if worker.channel is not None:
                worker.channel.send(told)
        return told
