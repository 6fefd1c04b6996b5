"""`P2pConnector`, as vLLM loads it: glue between vLLM's interface and the two halves in `engine`."""

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base, metrics

from pd_connector import settings as connector_settings
from pd_connector.core.orders import Order
from pd_connector.engine import compat, local
from pd_connector.engine.metrics import COUNTERS, GAUGES, HISTOGRAMS, INFO, label_values, merge, summary
from pd_connector.engine.scheduler import SchedulerHalf
from pd_connector.engine.worker import WorkerHalf
from pd_connector.net.stats import BUCKETS


@dataclass
class Metadata(base.KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Orders from the scheduler to the workers, sent with a step."""

    orders: list[Order] = field(default_factory=list)


@dataclass
class WorkerMetadata(base.KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Events from the workers to a scheduler in another process."""

    mailed: list[local.Mailed] = field(default_factory=list)

    def aggregate(self, other: "WorkerMetadata") -> "WorkerMetadata":
        return WorkerMetadata(self.mailed + other.mailed)


@dataclass
class P2pStats(metrics.KVConnectorStats):  # type: ignore[misc]
    """Counters since the last step, as returned by `Stats.take`."""

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: metrics.KVConnectorStats) -> metrics.KVConnectorStats:
        """Merge the counters of two workers or two steps."""
        return P2pStats(merge(self.data, other.data))

    def reduce(self) -> dict[str, int | float]:
        return summary(self.data)

    def is_empty(self) -> bool:
        """Whether there is nothing to log; gauges alone do not count."""
        return not (self.data.get("counts") or self.data.get("spans"))


class P2pMetrics(metrics.KVConnectorPromMetrics):  # type: ignore[misc]
    """The series of `engine.metrics`, on vLLM's /metrics."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._series: dict[str, Any] = {}
        for table, make, options in (
            (COUNTERS, self._counter_cls, {}),
            (GAUGES, self._gauge_cls, {"multiprocess_mode": "mostrecent"}),
            (HISTOGRAMS, self._histogram_cls, {"buckets": BUCKETS}),
        ):
            for name, (series, text, own) in table.items():
                labels = own.split()
                made = make(name=series, documentation=text, labelnames=[*labelnames, *labels], **options)
                self._series[name] = (made, len(labels))
        for name, own_values in (
            ("draws", (compat.seeded_draws(vllm_config),)),
            ("own", compat.own_sampling(vllm_config)),
        ):
            series, text, own = INFO[name]
            if not any(own_values):
                continue
            told = self._gauge_cls(
                name=series, documentation=text, labelnames=[*labelnames, *own.split()], multiprocess_mode="mostrecent"
            )
            for values in per_engine_labelvalues.values():
                told.labels(*values, *own_values).set(1)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, label, value in transfer_stats_data.get("counts", ()):
            self._of(name, label, engine_idx).inc(value)
        for name, label, value in transfer_stats_data.get("gauges", ()):
            self._of(name, label, engine_idx).set(value)
        for name, label, values in transfer_stats_data.get("spans", ()):
            histogram = self._of(name, label, engine_idx)
            for value in values:
                histogram.observe(value)

    def _of(self, name: str, label: str, engine: int) -> Any:
        series, labels = self._series[name]
        return series.labels(*self.per_engine_labelvalues[engine], *label_values(label, labels))


class P2pConnector(base.KVConnectorBase_V1):  # type: ignore[misc]
    """KV from prefill to decode, pushed while the prompt is computed."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        config = connector_settings.load(self._kv_transfer_config.kv_connector_extra_config)
        facts = compat.read(vllm_config, kv_cache_config, config.model_tag)
        self._scheduler: Any = None
        self._worker: Any = None
        if role == base.KVConnectorRole.SCHEDULER:
            address = f"{config.host or compat.own_host()}:{facts.port}"
            self._scheduler = SchedulerHalf(facts, config, address, local.find(facts.engine_id))
            # Where vLLM does not call it, no step begins before its KV is there.
            self.bind_gpu_block_pool = self._scheduler.bind
        else:
            self._worker = WorkerHalf(facts, config)

    # Scheduler

    def on_new_request(self, request: Any) -> None:
        """See `SchedulerHalf`."""
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """See `SchedulerHalf.matched`."""
        found: tuple[int | None, bool] = self._scheduler.matched(request, num_computed_tokens)
        return found

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See `SchedulerHalf.allocated`."""
        self._scheduler.allocated(request, tuple(blocks.get_block_ids()[0]), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Metadata:
        """See `SchedulerHalf.build`."""
        return Metadata(self._scheduler.build(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        """See `SchedulerHalf.output`."""
        meta = connector_output.kv_connector_worker_meta
        self._scheduler.output(
            connector_output.finished_sending or (),
            connector_output.finished_recving or (),
            meta.mailed if meta else [],
        )

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:  # noqa: ARG002  vLLM's interface
        """See `SchedulerHalf.finished`."""
        found: tuple[bool, dict[str, Any] | None] = self._scheduler.finished(request)
        return found

    # Workers

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """See `WorkerHalf.register`."""
        self._worker.register(kv_caches)

    def handle_preemptions(self, kv_connector_metadata: Metadata) -> None:
        """Called before a step can overwrite the blocks of preempted requests."""
        self._worker.before_overwriting(kv_connector_metadata.orders)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:  # noqa: ARG002  vLLM's interface
        """Carry out the loads that the step needs, and all other orders."""
        self._worker.before_step(self._get_connector_metadata().orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Does nothing: KV is in all layers before the step."""

    def save_kv_layer(self, layer_name: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002  vLLM's interface
        """Gather the KV of all layers as soon as the last one has it, if somebody waits for it rather than for the step's token."""
        self._worker.after_layer(layer_name, self._get_connector_metadata().orders)

    def wait_for_save(self) -> None:
        """Gather the KV that the step computes, unless that was done; this does not wait."""
        self._worker.after_step(self._get_connector_metadata().orders)

    def get_finished(self, finished_req_ids: set[str], **kwargs: Any) -> tuple[set[str] | None, set[str] | None]:  # noqa: ARG002  vLLM's interface
        """Requests whose blocks may be freed, and requests whose KV has arrived."""
        sent, received = self._worker.finished(finished_req_ids)
        return sent or None, received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose KV did not arrive."""
        found: set[int] = self._worker.empty_blocks()
        return found

    def build_connector_worker_meta(self) -> WorkerMetadata | None:
        """Events for a scheduler in another process."""
        mailed = self._worker.mailed()
        return WorkerMetadata(mailed) if mailed else None

    def get_kv_connector_stats(self) -> P2pStats | None:
        """Counters since the last call, of scheduler and workers."""
        half = self._worker or self._scheduler
        data = half.counted()
        return P2pStats(data) if data else None

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    # Metrics

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> P2pStats:
        """The workers' counters, in the process that serves /metrics."""
        return P2pStats(data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> P2pMetrics:
        return P2pMetrics(*args)
