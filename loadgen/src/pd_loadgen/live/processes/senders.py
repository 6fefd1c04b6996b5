"""What sends the load: this process alone, or the workers of a Locust master, behind one interface."""

from collections.abc import Callable
from typing import Final, Protocol

from pd_contracts.records import RequestRecord
from pd_loadgen.live.processes.messages import Job, Report, Tally
from pd_loadgen.live.processes.shard import Shard
from pd_loadgen.workload.plan import Plan

Write = Callable[[list[bytes]], None]


class Senders(Protocol):
    """Sends one run at a time.

    Attributes:
        size: how many processes send.
        lead_s: from the decision to start until the first request may be due.
    """

    @property
    def size(self) -> int: ...
    @property
    def lead_s(self) -> float: ...
    @property
    def tally(self) -> Tally: ...

    def prepare(self, job: Job, planned: Plan, write: Write) -> None:
        """Get ready and send the warm-ups."""
        ...

    def offer(self, start: float) -> list[Report]:
        """Send from `start` on; a report from each process once all have ended."""
        ...

    def stop(self) -> None:
        """End early; what was measured is kept. May be called at any time."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class Alone:
    """This process sends everything."""

    size: Final = 1
    # the collector has run and the probe is armed by then
    lead_s: Final = 0.2

    def __init__(self, observe: Callable[[RequestRecord], None]) -> None:
        self._observe = observe
        self._shard: Shard | None = None

    @property
    def tally(self) -> Tally:
        return self._shard.tally if self._shard is not None else Tally()

    def prepare(self, job: Job, planned: Plan, write: Write) -> None:
        """Get ready and send the warm-ups."""
        self._shard = Shard(job, planned, write, self._observe)
        self._shard.warm_up()

    def offer(self, start: float) -> list[Report]:
        """Send from `start` on, and wait for the answers."""
        return [self._shard.offer(start)] if self._shard is not None else []

    def stop(self) -> None:
        if self._shard is not None:
            self._shard.stop()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._shard is not None:
            self._shard.close()
