"""What `/metrics` shows. Series are declared once, in a registry of this proxy's own."""

import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pd_contracts.names import Role
from pd_contracts.timing import Stages
from pd_proxy.engines.registry import Instance, State

# Seconds: from the time that the proxy itself takes to that of a queue in front of a busy prefill.
BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250,
)  # fmt: skip
BUCKETS_MS: Final = tuple(1e3 * bound for bound in BUCKETS)
STAGES: Final = ("queue", "prefill", "kv_and_first_decode", "decode")


# Suffixes of samples that add up over processes, by type of metric. The time at which a series began ("_created") does not.
ADDITIVE: Final = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


class Numbers(msgspec.Struct, frozen=True):
    """The counts of requests that `/stats` shows."""

    in_flight: int = 0
    total: int = 0
    failures: int = 0
    drains: int = 0
    retries: int = 0
    handed_off: int = 0
    migrations: int = 0
    rejected_pings: int = 0
    worker_restarts: int = 0

    def __add__(self, other: "Numbers") -> "Numbers":
        ours, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Numbers(*map(sum, zip(ours, theirs, strict=True)))


class Sample(msgspec.Struct, frozen=True):
    """A sample of a metric that adds up over processes."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class _Instances(Collector):
    """Counts instances when they are asked for, so that no state change can be missed."""

    def __init__(self, view: Callable[[], Sequence[Instance]], kv_bytes: Callable[[Instance], int]) -> None:
        self._view = view
        self._kv_bytes = kv_bytes

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("pd_proxy_instances", "Engines by role and state", labels=["role", "state"])
        counts = Tally((instance.role, instance.state) for instance in self._view())
        for role in Role:
            for state in State:
                family.add_metric([role.value, state.value], counts[role, state])
        yield family
        family = GaugeMetricFamily(
            "pd_proxy_kv_in_flight_bytes", "KV on its way to a decode engine", labels=["instance"]
        )
        for instance in self._view():
            if instance.role is Role.DECODE:
                family.add_metric([instance.name], self._kv_bytes(instance))
        yield family


class _StageTimes(Collector):
    """The histograms of the stages. Every request is counted in four of them, so counting is one search and two additions."""

    def __init__(self) -> None:
        self._created = time.time()
        self._stages = {name: ([0] * (len(BUCKETS) + 1), [0.0]) for name in STAGES}

    def add(self, stages: Stages) -> None:
        times = (stages.queue, stages.prefill, stages.kv_and_first_decode, stages.decode)
        for (counts, total), time_ms in zip(self._stages.values(), times, strict=True):
            counts[bisect_left(BUCKETS_MS, time_ms)] += 1
            total[0] += time_ms / 1e3

    def collect(self) -> Iterable[HistogramMetricFamily]:
        name = "pd_proxy_stage_seconds"
        family = HistogramMetricFamily(name, "Time of completed requests in each stage", labels=["stage"])
        for stage, (counts, total) in self._stages.items():
            bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
            family.add_metric([stage], list(zip(bounds, accumulate(counts), strict=True)), total[0])
            family.add_sample(name + "_created", {"stage": stage}, self._created)
        yield family


class _Requests(Collector):
    """The requests by endpoint and status. Every request is counted here, and the library's own counter takes a lock for each."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._created: dict[tuple[str, int], float] = {}

    def add(self, endpoint: str, status: int) -> None:
        key = endpoint, status
        if key not in self._counts:
            self._counts[key], self._created[key] = 0, time.time()
        self._counts[key] += 1

    def collect(self) -> Iterable[CounterMetricFamily]:
        labels = ["endpoint", "status"]
        family = CounterMetricFamily("pd_proxy_requests", "Requests by endpoint and status", labels=labels)
        for (endpoint, status), count in self._counts.items():
            family.add_metric([str(endpoint), str(status)], count, created=self._created[endpoint, status])
        yield family


class Metrics(Collector):
    """The proxy's counters. Those that `/stats` also shows are kept as plain numbers, too."""

    def __init__(
        self,
        view: Callable[[], Sequence[Instance]],
        kv_bytes: Callable[[Instance], int],
        owed: Callable[[], int] = lambda: 0,
    ) -> None:
        """`view` returns the instances, `kv_bytes` the bytes on their way to one, `owed` the number of debts."""
        self._registry = CollectorRegistry()
        self._registry.register(_Instances(view, kv_bytes))
        self.in_flight = 0
        self.total = 0
        self.failures = 0
        self.drains = 0
        self.retries = 0
        self.handed_off = 0
        self.migrations = 0
        self.rejected_pings = 0
        self.worker_restarts = 0
        self._requests = _Requests()
        self._registry.register(self._requests)
        self._causes = self._counter("failures", "Requests that failed, by cause", "cause")
        self._rejected = self._counter("rejected_pings", "Pings refused, by reason", "reason")
        self._retried = self._counter("retries", "Attempts after a failed one, by the cause of that failure", "cause")
        self._first_tokens = self._counter(
            "first_tokens",
            "Requests with P2pConnector, by the role that wrote the first token and, if decode did, the reason",
            "by",
            "reason",
        )
        self._migrations = self._counter(
            "migrations", "Attempts to continue a stream at another engine, by result", "result"
        )
        self._canaries = self._counter("canaries", "Canaries of pairs of prefill and decode, by verdict", "verdict")
        self._drained = self._counter("drains", "Requests that made decode consume abandoned KV, by result", "result")
        self._refused_connections = self._counter(
            "refused_connections", "Connections refused for lack of room, by reason", "reason"
        )
        self._refused_requests = self._counter(
            "refused_requests",
            "Requests that were refused as HTTP, before it was known what they ask for, by status",
            "status",
        )
        self._restarts = self._counter(
            "worker_restarts", "Workers that ended unexpectedly and were replaced (PROXY_WORKERS above 1)"
        )
        self._stages = _StageTimes()
        self._registry.register(self._stages)
        gauge = Gauge(
            "pd_proxy_kv_owed", "Requests that left KV which decode may still have to consume", registry=self._registry
        )
        gauge.set_function(owed)
        gauge = Gauge("pd_proxy_requests_in_flight", "Requests in flight", registry=self._registry)
        gauge.set_function(lambda: self.numbers().in_flight)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pd_proxy_{name}", text, labels, registry=self._registry)

    def started(self) -> None:
        """A request for tokens arrived."""
        self.in_flight += 1
        self.total += 1

    def ended(self, endpoint: str, status: int, cause: str, *, fault: bool) -> None:
        """A request ended. `cause` is empty if it succeeded; `fault`: it failed, and not because of the client."""
        self.in_flight -= 1
        self._requests.add(endpoint, status)
        self.failures += fault
        if cause:
            self._causes.labels(cause).inc()

    def staged(self, stages: Stages) -> None:
        """Count the time of a completed request in each stage."""
        self._stages.add(stages)

    def retried(self, cause: str) -> None:
        """A request is tried again after a failure with this cause."""
        self.retries += 1
        self._retried.labels(cause).inc()

    def first_token(self, *, handed_off: bool, reason: str) -> None:
        """A request with P2pConnector has ended; `reason` says why decode wrote the whole answer."""
        done = handed_off and not reason
        self.handed_off += done
        self._first_tokens.labels("prefill" if done else "decode", reason).inc()

    def migrated(self, result: str) -> None:
        """A stream whose engine failed is continued at another one ("done") or not ("failed")."""
        self.migrations += result == "done"
        self._migrations.labels(result).inc()

    def canary(self, verdict: str) -> None:
        self._canaries.labels(verdict).inc()

    def ping_rejected(self, reason: str) -> None:
        self.rejected_pings += 1
        self._rejected.labels(reason).inc()

    def connection_refused(self, reason: str) -> None:
        """A connection from a client or to an engine was refused."""
        self._refused_connections.labels(reason).inc()

    def request_refused(self, status: int) -> None:
        """A request was refused by the HTTP layer."""
        self._refused_requests.labels(str(status)).inc()

    def drained(self, result: str) -> None:
        """A drain ended: "done" or "failed"."""
        self.drains += result == "done"
        self._drained.labels(result).inc()

    def worker_ended(self, in_flight: int) -> None:
        """A worker ended unexpectedly, with `in_flight` requests, and will be replaced."""
        self.worker_restarts += 1
        self._restarts.inc()
        if in_flight:
            self._causes.labels("worker_ended").inc(in_flight)

    def at_once(self) -> int:
        """Requests that count against MAX_IN_FLIGHT."""
        return self.in_flight

    def numbers(self) -> Numbers:
        return Numbers(
            in_flight=self.in_flight,
            total=self.total,
            failures=self.failures,
            drains=self.drains,
            retries=self.retries,
            handed_off=self.handed_off,
            migrations=self.migrations,
            rejected_pings=self.rejected_pings,
            worker_restarts=self.worker_restarts,
        )

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()

    def samples(self) -> list[Sample]:
        """The samples that add up over processes."""
        return [
            Sample(sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in self.collect()
            for sample in family.samples
            if sample.name.endswith(ADDITIVE.get(family.type, ()))
        ]

    def render(self) -> bytes:
        return generate_latest(self)
