"""The histograms of stages show what prometheus_client's own would show."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from pd_contracts.timing import Stages
from pd_proxy.metrics import BUCKETS, STAGES, Metrics

MS = st.floats(0, 1e6) | st.sampled_from([1e3 * bound for bound in BUCKETS])


@given(st.lists(st.tuples(MS, MS, MS, MS), max_size=20))
def test_stage_times_are_counted_as_by_prometheus_client(times: list[tuple[float, float, float, float]]) -> None:
    registry, metrics = CollectorRegistry(), Metrics(tuple, lambda _: 0)
    name, text = "pd_proxy_stage_seconds", "Time of completed requests in each stage"
    usual = Histogram(name, text, ["stage"], buckets=BUCKETS, registry=registry)
    for stage in STAGES:
        usual.labels(stage)

    for spent in times:
        queue, prefill, first, decode = spent
        metrics.staged(
            Stages(queue=queue, prefill=prefill, kv_and_first_decode=first, decode=decode, decode_instance="d")
        )
        for stage, ms in zip(STAGES, spent, strict=True):
            usual.labels(stage).observe(ms / 1e3)

    ours = [line for line in metrics.render().decode().splitlines() if name in line and "_created{" not in line]
    assert ours == [line for line in generate_latest(registry).decode().splitlines() if "_created{" not in line]
