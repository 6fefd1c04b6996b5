"""A worker's context: it knows of engines what its parent tells it, and tells the parent what must outlive the worker."""

from collections.abc import Callable, Sequence

from pd_contracts.names import Role
from pd_proxy.context import Context
from pd_proxy.engines.registry import Change, Instance, Registry, State
from pd_proxy.errors import RestartedError, StalledError
from pd_proxy.kv.debts import Debt
from pd_proxy.processes.channel import EngineReport, Message, News, Owed, Report, Unreachable
from pd_proxy.processes.shared import LedgerShare, SharedBudget, SharedFlights, SharedMetrics, Turns
from pd_proxy.settings import Settings
from pd_proxy.upstream.flights import earliest

Tell = Callable[[Message], None]


class Mirror(Registry):
    """Shows another process's registry; nothing pings here and nothing is checked."""

    def __init__(self, settings: Settings, tell: Tell) -> None:
        """Empty until `show`."""
        super().__init__(
            ping_ttl_s=settings.ping_ttl_s,
            health_failures=settings.health_failures,
            default_connector=settings.kv_connector,
        )
        self._shown: tuple[Instance, ...] = ()
        self._by_incarnation: dict[int, Instance] = {}
        self._tell = tell

    def show(self, instances: Sequence[Instance]) -> None:
        """From now on, this is the view."""
        self._shown = tuple(instances)
        self._by_incarnation = {instance.incarnation: instance for instance in instances}

    def view(self) -> tuple[Instance, ...]:
        """As `Registry.view`."""
        return self._shown

    def current(self, instance: Instance) -> Instance | None:
        """As `Registry.current`."""
        return self._by_incarnation.get(instance.incarnation)

    def unhealthy(self, instance: Instance, reason: str, *, certain: bool = False) -> list[Change]:  # noqa: ARG002
        """As `Registry.unhealthy`, but it is the parent who changes something; workers only ever see refused connections."""
        self._tell(Unreachable(incarnation=instance.incarnation, reason=reason))
        return []


class WorkerContext(Context):
    """Everything that lives as long as a worker."""

    def __init__(self, settings: Settings, share: LedgerShare, tell: Tell, started: float) -> None:
        """`tell` sends a message to the parent, which has served since `started`.

        Raises:
            OSError: if the file of keys cannot be read.
        """
        super().__init__(settings)
        self._share = share
        self._tell = tell
        self.started = started
        self.turns = Turns(share)
        self.registry: Mirror = Mirror(settings, tell)
        self.flights = SharedFlights(share)
        self.budget = SharedBudget(settings.kv_in_flight_bytes, settings.kv_bytes_per_token, share)
        self.metrics = SharedMetrics(share)

    def take(self, news: News) -> None:
        """Know what the parent knows, and end what it has given up, as `Context.noted` and `suspect` do there."""
        before = self.registry.view()
        self._share.slots.adopt(news.slots)
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
                self.flights.abort(now, StalledError(f"{now.name} stands still"))

    def owe(self, debt: Debt) -> None:
        """The parent sees to it, whatever becomes of this worker."""
        self._tell(Owed(debt=debt))

    def report(self, now: float, answers: int = 0) -> Report:
        """How it goes; `now` is on the event loop's clock."""
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
