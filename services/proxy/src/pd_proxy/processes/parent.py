"""The context of a parent: it serves no requests for tokens, but judges engines and answers for all its workers."""

from collections.abc import Awaitable, Callable, Iterable

import msgspec
from prometheus_client.metrics_core import Metric

from pd_proxy.context import Context
from pd_proxy.engines.registry import Instance
from pd_proxy.metrics import Metrics, Numbers
from pd_proxy.processes.ledger import Head, Ledger
from pd_proxy.processes.metric_sums import MetricSums
from pd_proxy.processes.shared import LedgerShare, SharedBudget, SharedFlights
from pd_proxy.settings import Settings
from pd_proxy.upstream.flights import Verdict, verdict


class PoolFlights(SharedFlights):
    """The parent's own flights (probes, canaries), and what workers report of theirs."""

    def __init__(self, share: LedgerShare, sums: MetricSums) -> None:
        """Start empty."""
        super().__init__(share)
        self._sums = sums

    def counts(self, address: str) -> tuple[int, int]:
        """As `Flights.counts`, of everybody."""
        own, theirs = super().counts(address), self._sums.counts(address)
        return own[0] + theirs[0], own[1] + theirs[1]

    def verdict(self, instance: Instance, now: float, limit: float) -> Verdict:
        """As `Flights.verdict`: an engine stands still only if nobody sees it move. What is not known yet speaks for the engine."""
        reports = self._sums.evidence(instance.http_address)
        found = [self.evidence(instance.http_address), *(evidence for _, evidence in reports)]
        known = min([now, *(at for at, evidence in reports if evidence.waits)])
        waits = [wait for evidence in found for wait in evidence.waits]
        return verdict(waits, max(evidence.last_progress for evidence in found), known, limit)

    def forget(self, instance: Instance) -> None:
        """As `Flights.forget`."""
        super().forget(instance)
        self._sums.forget(instance.http_address)


class PoolMetrics(Metrics):
    """The parent's own counts with everybody's."""

    def __init__(self, context: Context, ledger: Ledger, sums: MetricSums) -> None:
        """Shows the context's instances and debts."""
        super().__init__(context.shown, context.budget.claimed, context.debts.__len__)
        self._ledger = ledger
        self._sums = sums

    def numbers(self) -> Numbers:
        """As `Metrics.numbers`."""
        found = super().numbers() + self._sums.numbers()
        requests = found.total + self._ledger.total(Head.REQUESTS)
        return msgspec.structs.replace(found, total=requests, in_flight=self._ledger.total(Head.IN_FLIGHT))

    def collect(self) -> Iterable[Metric]:
        """As `Metrics.collect`."""
        return self._sums.merged(super().collect())


class ParentContext(Context):
    """Everything that exists once, however many workers there are."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        """Build everything that needs no event loop.

        Raises:
            OSError: if the file of keys cannot be read.
        """
        super().__init__(settings)
        self.ledger = ledger
        self.share = LedgerShare(ledger, 0)
        self.sums = MetricSums()
        self.flights = PoolFlights(self.share, self.sums)
        self.budget = SharedBudget(settings.kv_in_flight_bytes, settings.kv_bytes_per_token, self.share)
        self.metrics = PoolMetrics(self, ledger, self.sums)
        self.tell_all: Callable[[], Awaitable[None]] | None = None

    async def heard(self) -> None:
        """As `Context.heard`: all workers have what the registry says now, and have reported since."""
        if self.tell_all is not None:
            await self.tell_all()
