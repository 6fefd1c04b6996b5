"""The contents of `/metrics`: the present sample of every GPU, and how well the monitor itself keeps up.

A GPU's series are made from the last sample at each scrape, so a reading that failed, and a board that is gone, have no series at
all instead of an old value.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pd_monitor import __version__
from pd_monitor.catalog import GPU_LABELS, SERIES, Seen, Series
from pd_monitor.closure import Closure
from pd_monitor.reading import Details, Tick, answered
from pd_monitor.sampler import Sampler

_INTERVALS = (
    0.02,
    0.05,
    0.09,
    0.095,
    0.099,
    0.101,
    0.105,
    0.11,
    0.15,
    0.2,
    0.3,
    0.5,
    0.9,
    0.99,
    1.01,
    1.1,
    1.5,
    2,
    5,
    10,
    60,
)
_CALLS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Owns the registry; a watcher of the sampler."""

    def __init__(self, sampler: Sampler, active_recordings: Callable[[], int]) -> None:
        """Make every series, so that counters start at 0 instead of appearing with their first event."""
        self.registry = CollectorRegistry()
        self._last_begun: float | None = None
        self._interval = Histogram(
            "pd_exporter_sample_interval_seconds",
            "Achieved time between the starts of consecutive samples",
            buckets=_INTERVALS,
            registry=self.registry,
        )
        self._call = Histogram(
            "pd_exporter_call_seconds", "Time that reading all GPUs once took", buckets=_CALLS, registry=self.registry
        )
        self._missed = Counter(
            "pd_exporter_missed_ticks",
            "Samples that were due but skipped because an earlier one took too long",
            registry=self.registry,
        )
        self._read_errors = Counter(
            "pd_exporter_read_errors",
            "Readings that failed, by GpuSample field; gpu is the whole board",
            ["field"],
            registry=self.registry,
        )
        self._implausible = Counter(
            "pd_exporter_implausible_readings",
            "Implausible readings: beyond the board's limit, 0 W, a counter that jumps, goes back or stops",
            ["gpu", "field"],
            registry=self.registry,
        )
        self._closures: dict[int, Closure] = {}
        self.registry.register(_GpuCollector(sampler, self._closures))
        self.registry.register(_ExporterCollector(sampler, active_recordings))
        ProcessCollector(registry=self.registry)

    def observe(self, tick: Tick) -> None:
        if self._last_begun is not None:
            self._interval.observe(tick.begun - self._last_begun)
        self._last_begun = tick.begun
        self._call.observe(tick.ended - tick.begun)
        self._missed.inc(tick.missed)
        for name in tick.reading.failures:
            self._read_errors.labels(name).inc()
        for index, doubts in tick.implausible.items():
            for name in doubts:
                self._implausible.labels(str(index), name).inc()
        for sample in tick.reading.samples:
            self._closures.setdefault(sample.index, Closure()).add(sample)

    def text(self) -> bytes:
        """The exposition in Prometheus's text format."""
        return generate_latest(self.registry)


class _GpuCollector(Collector):
    def __init__(self, sampler: Sampler, closures: Mapping[int, Closure]) -> None:
        self._sampler = sampler
        self._closures = closures

    def collect(self) -> Iterator[Metric]:
        tick = self._sampler.current
        gpus = [] if tick is None else list(_seen(tick, self._closures))
        yield from (_family(series, gpus) for series in SERIES)


class _ExporterCollector(Collector):
    def __init__(self, sampler: Sampler, active_recordings: Callable[[], int]) -> None:
        self._sampler = sampler
        self._active_recordings = active_recordings

    def collect(self) -> Iterator[Metric]:
        sampler = self._sampler
        yield GaugeMetricFamily(
            "pd_exporter_backend_up", "1 if at least one GPU can be read now", value=float(not sampler.problem)
        )
        yield GaugeMetricFamily("pd_exporter_recordings", "Recordings that run now", value=self._active_recordings())
        info = GaugeMetricFamily(
            "pd_exporter_info", "Always 1; says where readings come from", labels=["backend", "simulated", "version"]
        )
        info.add_metric([sampler.backend.name, str(sampler.backend.simulated).lower(), __version__], 1.0)
        yield info
        readable = GaugeMetricFamily(
            "pd_exporter_gpu_readable", "1 if the GPU reports its power or energy now", labels=["gpu", "uuid"]
        )
        silent = sampler.silent
        for gpu in sampler.gpus:
            told = sampler.current is not None and gpu.index not in silent
            readable.add_metric([str(gpu.index), gpu.uuid], float(told))
        yield readable
        success = GaugeMetricFamily(
            "pd_exporter_last_success_timestamp_seconds", "When a GPU was last read, in seconds since the epoch"
        )
        if sampler.last_success is not None:
            success.add_metric([], sampler.last_success.wall)
        yield success


def _seen(tick: Tick, closures: Mapping[int, Closure]) -> Iterator[Seen]:
    reading = tick.reading
    samples = {sample.index: sample for sample in reading.samples}
    for info in reading.gpus:
        sample = samples.get(info.index)
        if sample is not None and answered(sample):
            closure = closures.get(info.index)
            believed = msgspec.structs.replace(sample, **dict.fromkeys(tick.implausible.get(info.index, ())))
            yield Seen(info, believed, reading.details.get(info.index, Details()), closure.ratios if closure else {})


def _family(series: Series, gpus: Iterable[Seen]) -> Metric:
    kind = CounterMetricFamily if series.counter else GaugeMetricFamily
    family = kind(series.name, series.help, labels=[*GPU_LABELS, *series.labels])
    for gpu in gpus:
        for labels, value in series.values(gpu):
            if value is not None:
                family.add_metric([str(gpu.info.index), gpu.info.uuid, gpu.sample.role or "", *labels], value)
    return family
