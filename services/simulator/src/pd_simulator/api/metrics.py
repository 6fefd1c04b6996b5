"""`GET /metrics`: vLLM's names where vLLM has one, `sim:` for the rest."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pd_simulator.engine.loop import Engine
from pd_simulator.engine.stats import Histogram
from pd_simulator.kv_blocks import BLOCK_TOKENS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model_name", "engine")
_REASONS = ("stop", "length", "abort", "error")


class EngineCollector(Collector):
    """Reads the engine's own counters when asked, so that counting costs the steps nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._values = (engine.machine.model, "0")

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._peers()
        yield from self._draws()
        yield self._cache()
        stats = self._engine.stats
        yield self._histogram("vllm:time_to_first_token_seconds", "Time to first token.", stats.ttft)
        yield self._histogram("vllm:inter_token_latency_seconds", "Time between tokens.", stats.itl)
        yield self._histogram("vllm:e2e_request_latency_seconds", "End-to-end latency.", stats.e2e)
        yield self._histogram("vllm:iteration_tokens_total", "Tokens per step.", stats.iteration_tokens)
        yield self._histogram(
            "sim:step_lateness_seconds",
            "How late this process finished its steps; large values mean too few CPUs.",
            stats.lateness,
        )

    def _gauges(self) -> Iterator[Metric]:
        scheduler, books = self._engine.scheduler, self._engine.machine.transfer.report()
        values = {
            "vllm:num_requests_running": ("Requests in the batch.", scheduler.running),
            "vllm:num_requests_waiting": ("Requests that wait.", scheduler.waiting + self._engine.fetching),
            "vllm:kv_cache_usage_perc": ("Share of the KV cache in use; 1 is all.", self._engine.kv_usage),
            "sim:kv_held": ("KV entries that lie here.", books.held),
            "sim:kv_waiting": ("Requests that wait for their KV.", books.waiting),
        }
        for name, (text, value) in values.items():
            family = GaugeMetricFamily(name, text, labels=_LABELS)
            family.add_metric(self._values, value)
            yield family

    def _peers(self) -> Iterator[Metric]:
        peers = self._engine.machine.transfer.peers()
        if peers:
            family = GaugeMetricFamily(
                "pd_kv_peer_up",
                "Whether a connection to another engine is open, by its address and transport.",
                labels=(*_LABELS, "peer", "transport"),
            )
            for peer, up in peers.items():
                family.add_metric((*self._values, *peer), up)
            yield family

    def _cache(self) -> Metric:
        """The KV cache's size, as vLLM tells it."""
        size = self._engine.machine.limits.kv_tokens
        labels = {
            "block_size": str(BLOCK_TOKENS),
            "kv_cache_size_tokens": str(size),
            "num_gpu_blocks": str(size // BLOCK_TOKENS),
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the KV cache's configuration.", labels=(*_LABELS, *labels)
        )
        family.add_metric((*self._values, *labels.values()), 1)
        return family

    def _draws(self) -> Iterator[Metric]:
        """As P2pConnector writes it for an engine whose draws depend on seed and position alone."""
        if draws := self._engine.machine.draws:
            family = GaugeMetricFamily(
                "pd_seeded_draws",
                "How tokens of requests with a seed are drawn: engines with equal labels draw the same ones.",
                labels=(*_LABELS, "draws"),
            )
            family.add_metric((*self._values, draws), 1)
            yield family

    def _counters(self) -> Iterator[Metric]:
        stats, books = self._engine.stats, self._engine.machine.transfer.books
        sources = {
            "local_compute": stats.local_tokens,
            "local_cache_hit": 0,
            "external_kv_transfer": stats.external_tokens,
        }
        yield self._counter(
            "vllm:prompt_tokens", "Prompt tokens processed.", stats.local_tokens + stats.external_tokens
        )
        yield self._counter("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens)
        yield self._counters_by("vllm:prompt_tokens_by_source", "Prompt tokens by source.", "source", sources)
        preempted = self._engine.scheduler.preemptions
        yield self._counter("vllm:num_preemptions", "Requests that lost their KV for want of room.", preempted)
        # There is no prefix cache here, and vLLM has these counters where it is off, too.
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", 0)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens that the prefix cache had.", 0)
        finished = {reason: stats.finished[reason] for reason in _REASONS}
        yield self._counters_by("vllm:request_success", "Requests that ended, by reason.", "finished_reason", finished)
        moved = {name: getattr(books, name) for name in ("sent", "received", "consumed", "freed", "expired")}
        yield self._counters_by("sim:kv_entries", "KV entries, one per request, by outcome.", "event", moved)
        yield self._counter("sim:steps", "Steps run.", stats.steps)

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._values, value)
        return family

    def _counters_by(self, name: str, text: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=(*_LABELS, label))
        for key, value in values.items():
            family.add_metric((*self._values, key), value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._values, histogram.buckets(), histogram.sum)
        return family


def registry_of(engine: Engine) -> CollectorRegistry:
    """A registry with this engine and nothing else."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text that a scrape gets."""
    return generate_latest(registry)
