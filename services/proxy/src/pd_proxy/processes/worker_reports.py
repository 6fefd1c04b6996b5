"""The workers' reports: the latest one of each, and the sums of the workers that have ended. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from prometheus_client.metrics_core import Metric

from pd_proxy.metrics import ADDITIVE, Numbers, Sample
from pd_proxy.processes.channel import EngineReport, Report
from pd_proxy.upstream.flights import Evidence

Key = tuple[str, tuple[tuple[str, str], ...]]


class WorkerReports:
    """Adds up what all workers of a proxy have counted since it started."""

    def __init__(self) -> None:
        self._reports: dict[int, Report] = {}
        self._past = Numbers()
        self._past_engines: dict[str, Counter[str]] = {}
        self._past_samples: defaultdict[Key, float] = defaultdict(float)

    def take(self, worker: int, report: Report) -> None:
        self._reports[worker] = report

    def ended(self, worker: int, requests: int, in_flight: int) -> None:
        """A worker has ended after `requests` requests, of which `in_flight` were running and have failed. Its counts stay in the sums."""
        report = self._reports.pop(worker, None)
        self._past += Numbers(total=requests, failures=in_flight)
        if report is None:
            return
        self._past += _settled(report)
        for engine in report.engines:
            past = self._past_engines.setdefault(engine.address, Counter())
            past.update(requests=engine.requests, failures=engine.failures)
        _add(self._past_samples, report.samples)

    def forget(self, address: str) -> None:
        """The registry forgot the engine."""
        self._past_engines.pop(address, None)

    def numbers(self) -> Numbers:
        """The sums, without requests in flight: these are in the shared counters."""
        return sum(map(_settled, self._reports.values()), self._past)

    def counts(self, address: str) -> tuple[int, int]:
        """The number of requests that workers sent to an engine, and how many of them failed."""
        past = self._past_engines.get(address, Counter())
        engines = [engine for _, engine in self._about(address)]
        requests = past["requests"] + sum(engine.requests for engine in engines)
        return requests, past["failures"] + sum(engine.failures for engine in engines)

    def evidence(self, address: str) -> list[tuple[float, Evidence]]:
        """Each worker's evidence about an engine, with its time."""
        return [(at, Evidence(engine.waits, engine.last_progress)) for at, engine in self._about(address)]

    def merged(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """A process's own metrics; to those that add up, the workers' counts are added."""
        counted = self._past_samples.copy()
        for report in self._reports.values():
            _add(counted, report.samples)
        for family in families:
            yield _summed(family, counted) if family.type in ADDITIVE else family

    def _about(self, address: str) -> Iterator[tuple[float, EngineReport]]:
        for report in self._reports.values():
            yield from ((report.at, engine) for engine in report.engines if engine.address == address)


def _settled(report: Report) -> Numbers:
    """All counts but those of requests, which are in the shared counters."""
    return msgspec.structs.replace(report.numbers, in_flight=0, total=0)


def _add(counted: defaultdict[Key, float], samples: Iterable[Sample]) -> None:
    for sample in samples:
        counted[sample.name, sample.labels] += sample.value


def _summed(family: Metric, counted: Mapping[Key, float]) -> Metric:
    names = tuple(family.name + suffix for suffix in ADDITIVE[family.type])
    own = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in family.samples if s.name in names}
    found = Metric(family.name, family.documentation, family.type)
    for key in own | {key: 0.0 for key in counted if key[0] in names}:
        found.add_sample(key[0], dict(key[1]), own.get(key, 0.0) + counted.get(key, 0.0))
    return found
