"""A worker's context: it learns about engines from its parent, and tells the parent what must outlive the worker."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pd_contracts.names import Role
from pd_proxy.access import Keys
from pd_proxy.context import Context
from pd_proxy.engines.registry import Instance, State
from pd_proxy.engines.trust import Trust
from pd_proxy.errors import RestartedError, StalledError
from pd_proxy.kv.debts import Debt
from pd_proxy.processes.channel import EngineReport, LookAgain, Message, News, Owed, Report, Unreachable
from pd_proxy.processes.shared_parts import ProcessCounters, SharedBudget, SharedFlights, SharedMetrics, Turns
from pd_proxy.settings import Settings
from pd_proxy.shortage import Shortage
from pd_proxy.supervisor import LOOK_TIMEOUT_S
from pd_proxy.upstream.access import access_of
from pd_proxy.upstream.flights import earliest
from pd_proxy.upstream.http import Upstream

Tell = Callable[[Message], None]


class RegistryCopy:
    """The engines as the parent described them last; it receives no pings and checks nothing."""

    def __init__(self) -> None:
        self._shown: tuple[Instance, ...] = ()
        self._by_incarnation: dict[int, Instance] = {}

    def show(self, instances: Sequence[Instance]) -> None:
        """Replace the view."""
        self._shown = tuple(instances)
        self._by_incarnation = {instance.incarnation: instance for instance in instances}

    def view(self) -> tuple[Instance, ...]:
        return self._shown

    def current(self, instance: Instance) -> Instance | None:
        return self._by_incarnation.get(instance.incarnation)


@dataclass(kw_only=True, eq=False)
class WorkerContext(Context):
    """The parts that live as long as a worker.

    Attributes:
        counters: its part of the memory that all processes share.
        tell: sends a message to the parent.
    """

    registry: RegistryCopy
    counters: ProcessCounters
    tell: Tell

    def __post_init__(self) -> None:
        """What follows from the parts."""
        super().__post_init__()
        self._looking: asyncio.Future[None] | None = None
        self._looks = 0

    def take(self, news: News) -> None:
        """Take over the parent's state, and end requests at engines that it has given up, as `Supervisor.noted` and `suspect` do there."""
        before = self.registry.view()
        self.counters.slots.adopt(news.slots)
        self.trust.adopt(news.verdicts)
        self.registry.show(news.instances)
        addresses = {instance.http_address for instance in news.instances}
        for old in before:
            now = self.registry.current(old)
            if now is None:
                self.flights.abort(old, RestartedError(f"{old.name} restarted"))
                if old.http_address not in addresses:
                    self.flights.forget(old)
            elif now.state is State.SUSPECT and old.state is not State.SUSPECT and now.role is not Role.PREFILL:
                self.flights.abort(now, StalledError(f"{now.name} has stalled"))

    def unreachable(self, instance: Instance, reason: str) -> None:
        """As `Context.unreachable`; the parent judges."""
        self.tell(Unreachable(incarnation=instance.incarnation, reason=reason))

    async def look_again(self) -> None:
        """As `Context.look_again`; the parent asks, once for all requests that wait meanwhile."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_future()
            self._looks += 1
            self.tell(LookAgain(number=self._looks))
        # Longer than the parent takes; if it hangs, the client is answered with what was known before.
        await asyncio.wait([self._looking], timeout=2 * LOOK_TIMEOUT_S)

    def looked(self, number: int) -> None:
        """The parent has asked the engines."""
        if self._looking is not None and number == self._looks:
            self._looking.set_result(None)
            self._looking = None

    def owe(self, debt: Debt) -> None:
        """As `Context.owe`; the parent repays the debt, even if this worker dies."""
        self.tell(Owed(debt=debt))

    def report(self, now: float, answers: int = 0) -> Report:
        """This worker's counts and evidence; `now` is on the event loop's clock."""
        return Report(
            at=now,
            answers=answers,
            numbers=self.metrics.numbers(),
            engines=[self._engine(address) for address in self.flights.addresses()],
            samples=self.metrics.samples(),
        )

    def _engine(self, address: str) -> EngineReport:
        found, (requests, failures) = self.flights.evidence(address), self.flights.counts(address)
        return EngineReport(
            address=address,
            requests=requests,
            failures=failures,
            last_progress=found.last_progress,
            waits=earliest(found.waits),
        )


def worker_context(settings: Settings, counters: ProcessCounters, tell: Tell, started: float) -> WorkerContext:
    """The context of a worker of a proxy that has served since `started`.

    Raises:
        OSError: if the file of keys, or of engines' authorities, cannot be read.
    """
    metrics = SharedMetrics(counters)
    shortage = Shortage(metrics.connection_refused)
    return WorkerContext(
        settings=settings,
        registry=RegistryCopy(),
        trust=Trust(needed=settings.canary),
        flights=SharedFlights(counters),
        budget=SharedBudget(settings.kv_in_flight_bytes, settings.kv_bytes_per_token, counters),
        metrics=metrics,
        shortage=shortage,
        upstream=Upstream(settings.connect_timeout_s, settings.max_answer_bytes, shortage, access_of(settings)),
        turns=Turns(counters),
        keys=Keys(settings.api_keys_file),
        started=started,
        counters=counters,
        tell=tell,
    )
