"""The context of a parent: it serves no requests for tokens, but judges engines and answers on behalf of all workers."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

import msgspec
from prometheus_client.metrics_core import Metric

from pd_proxy.access import Keys
from pd_proxy.engines.registry import Instance
from pd_proxy.engines.trust import Trust
from pd_proxy.kv.debts import Debts
from pd_proxy.metrics import Metrics, Numbers
from pd_proxy.processes.briefing import Briefing
from pd_proxy.processes.shared_counters import Head, SharedCounters
from pd_proxy.processes.shared_parts import ProcessCounters, SharedBudget, SharedFlights
from pd_proxy.processes.worker_process import WorkerProcess
from pd_proxy.processes.worker_reports import WorkerReports
from pd_proxy.settings import Settings
from pd_proxy.shortage import Shortage
from pd_proxy.supervisor import Supervisor, registry_of
from pd_proxy.upstream.access import access_of
from pd_proxy.upstream.flights import Verdict, verdict
from pd_proxy.upstream.http import Upstream


class PooledFlights(SharedFlights):
    """The parent's own flights (probes, canaries), and those that workers report."""

    def __init__(self, counters: ProcessCounters, reports: WorkerReports) -> None:
        super().__init__(counters)
        self._reports = reports

    def counts(self, address: str) -> tuple[int, int]:
        """As `Flights.counts`, over all processes."""
        own, theirs = super().counts(address), self._reports.counts(address)
        return own[0] + theirs[0], own[1] + theirs[1]

    def moved_since(self, instance: Instance, then: float) -> bool:
        """As `Flights.moved_since`, over all processes."""
        reports = self._reports.evidence(instance.http_address)
        return super().moved_since(instance, then) or any(found.last_progress > then for _, found in reports)

    def verdict(self, instance: Instance, now: float, limit: float) -> Verdict:
        """As `Flights.verdict`: an engine has stalled only if no worker sees it move. Missing reports count in its favour."""
        reports = self._reports.evidence(instance.http_address)
        found = [self.evidence(instance.http_address), *(evidence for _, evidence in reports)]
        known = min([now, *(at for at, evidence in reports if evidence.waits)])
        waits = [wait for evidence in found for wait in evidence.waits]
        return verdict(waits, max(evidence.last_progress for evidence in found), known, limit)

    def forget(self, instance: Instance) -> None:
        super().forget(instance)
        self._reports.forget(instance.http_address)


class PooledMetrics(Metrics):
    """The metrics of the parent and of all workers."""

    def __init__(
        self,
        view: Callable[[], Sequence[Instance]],
        kv_bytes: Callable[[Instance], int],
        owed: Callable[[], int],
        shared: SharedCounters,
        reports: WorkerReports,
    ) -> None:
        """The first three arguments are as in `Metrics`."""
        super().__init__(view, kv_bytes, owed)
        self._shared = shared
        self._reports = reports

    def numbers(self) -> Numbers:
        found = super().numbers() + self._reports.numbers()
        requests = found.total + self._shared.total(Head.REQUESTS)
        return msgspec.structs.replace(found, total=requests, in_flight=self._shared.total(Head.IN_FLIGHT))

    def collect(self) -> Iterable[Metric]:
        return self._reports.merged(super().collect())


@dataclass(kw_only=True, eq=False)
class Parent(Supervisor):
    """The parts that exist once, however many workers there are.

    Attributes:
        shared: the memory that all processes share.
        reports: the workers' counts.
        briefing: tells workers what the registry says.
        workers: the processes that serve.
    """

    shared: SharedCounters
    reports: WorkerReports
    briefing: Briefing
    workers: Sequence[WorkerProcess]


def parent(settings: Settings, shared: SharedCounters, workers: Sequence[WorkerProcess]) -> Parent:
    """The context of the parent of these workers.

    Raises:
        OSError: if the file of keys, or of engines' authorities, cannot be read.
    """
    registry, trust, debts = registry_of(settings), Trust(needed=settings.canary), Debts()
    counters, reports = ProcessCounters(shared, 0), WorkerReports()
    budget = SharedBudget(settings.kv_in_flight_bytes, settings.kv_bytes_per_token, counters)
    briefing = Briefing(registry, trust, counters, workers)
    metrics = PooledMetrics(lambda: trust.shown(registry.view()), budget.claimed, debts.__len__, shared, reports)
    shortage = Shortage(metrics.connection_refused)
    return Parent(
        settings=settings,
        registry=registry,
        trust=trust,
        debts=debts,
        flights=PooledFlights(counters, reports),
        budget=budget,
        metrics=metrics,
        shortage=shortage,
        upstream=Upstream(settings.connect_timeout_s, settings.max_answer_bytes, shortage, access_of(settings)),
        turns=itertools.count(),
        keys=Keys(settings.api_keys_file),
        started=monotonic(),
        heard=briefing.heard,
        shared=shared,
        reports=reports,
        briefing=briefing,
        workers=workers,
    )
