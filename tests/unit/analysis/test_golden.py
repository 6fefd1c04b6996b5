"""A run of ten requests whose numbers were worked out by hand, with the arithmetic beside each; and what holds for any run."""

import random
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.analysis import deployment, failed, manifest, request, run, workload

from pd_analysis.numbers.metrics import Metrics, distribution, measure
from pd_contracts import latency
from pd_contracts.records import Manifest, RequestRecord
from pd_contracts.timing import Stages


def ten_requests() -> list[RequestRecord]:
    """One of warm-up, eight that succeed (k = 1 to 8), one that fails.

    Request k is due at k s, sent 1 ms later, has its first token 10 k ms after it was due and four gaps of k ms; only the last
    gap of k = 8 is 40 ms. Every prompt has 100 tokens, every output 5.
    """
    served = [
        request(k, float(k), ttft=0.010 * k, gaps=[*[0.001 * k] * 3, 0.040 if k == 8 else 0.001 * k], sent=k + 0.001)
        for k in range(1, 9)
    ]
    return [request(0, 0.0, ttft=9.0, gaps=[5.0], warmup=True), *served, failed(9, 9.0, kind="status")]


def about() -> Manifest:
    return manifest(
        window=(0.0, 10.0), deployment=deployment(gpus=2), workload=workload(goodput={"ttft": 65.0, "tpot": 6.5})
    )


@pytest.fixture(name="golden")
def _golden() -> Metrics:
    return measure(run(ten_requests(), about()))


def _ms(metrics: Metrics, name: str) -> list[float]:
    values = metrics.latencies[name]
    found = [values.mean, *(values.at(percentile) for percentile in (50, 90, 95, 99))]
    return [value * 1e3 for value in found if value is not None]


# Eight values have ranks 0 to 7: p50 lies at rank 3.5, p90 at 6.3, p95 at 6.65, p99 at 6.93.


def test_ttft_of_ten_requests(golden: Metrics) -> None:
    # 10, 20, … 80 ms: mean 360 / 8; rank 3.5 is between 40 and 50, rank 6.3 is 70 + 0.3 × 10
    assert _ms(golden, "TTFT") == pytest.approx([45.0, 45.0, 73.0, 76.5, 79.3])


def test_ttft_from_send_of_ten_requests(golden: Metrics) -> None:
    # every request was sent 1 ms after it was due
    assert _ms(golden, "TTFT (from send)") == pytest.approx([44.0, 44.0, 72.0, 75.5, 78.3])


def test_tpot_of_ten_requests(golden: Metrics) -> None:
    # 1, 2, … 7 ms and (8 + 8 + 8 + 40) / 4 = 16 ms: mean 44 / 8; above rank 6 it is 7 + fraction × 9
    assert _ms(golden, "TPOT") == pytest.approx([5.5, 4.5, 9.7, 12.85, 15.37])


def test_gaps_of_ten_requests_are_pooled(golden: Metrics) -> None:
    # 32 gaps: four each of 1 to 7 ms, three of 8 ms, one of 40 ms: mean 176 / 32. Rank 15.5 is between the last 4 and the first 5,
    # 27.9 between the last 7 and the first 8, 29.45 among the 8s, 30.69 is 8 + 0.69 × 32
    assert golden.latencies["ITL"].count == 32
    assert _ms(golden, "ITL") == pytest.approx([5.5, 4.5, 7.9, 8.0, 30.08])


def test_longest_gap_of_ten_requests(golden: Metrics) -> None:
    # 1, 2, … 7 and 40 ms: mean 68 / 8; above rank 6 it is 7 + fraction × 33
    assert _ms(golden, "Longest gap") == pytest.approx([8.5, 4.5, 16.9, 28.45, 37.69])


def test_e2el_of_ten_requests(golden: Metrics) -> None:
    # 10 k + 4 k = 14 k ms up to k = 7, and 80 + 64 = 144 ms: mean (14 × 28 + 144) / 8 = 67; above rank 6 it is 98 + fraction × 46
    assert _ms(golden, "E2EL") == pytest.approx([67.0, 63.0, 111.8, 127.9, 140.78])


def test_rates_of_ten_requests(golden: Metrics) -> None:
    # 8 successes, 8 × 5 output and 8 × 100 prompt tokens in 10 s, on 2 GPUs
    assert (golden.request_rate, golden.output_rate, golden.token_rate) == pytest.approx((0.8, 4.0, 84.0))
    assert [
        golden.per_gpu(rate) for rate in (golden.request_rate, golden.output_rate, golden.token_rate)
    ] == pytest.approx([0.4, 2.0, 42.0])


def test_goodput_of_ten_requests(golden: Metrics) -> None:
    # TTFT ≤ 65 ms and TPOT ≤ 6.5 ms: k = 1 to 6; the failure is among the nine that were measured
    assert golden.goodput == pytest.approx(0.6)
    assert golden.per_gpu(golden.goodput) == pytest.approx(0.3)
    assert golden.attainment == pytest.approx(6 / 9)


def test_failures_are_counted_apart_and_warmup_not_at_all(golden: Metrics) -> None:
    assert (golden.requests, golden.successes, golden.failures) == (9, 8, {"status": 1})


def test_a_request_without_error_and_token_is_a_failure() -> None:
    silent = request(0, chunks=[], output_tokens=0)

    assert measure(run([silent, request(1)])).failures == {"empty": 1}


def test_a_failure_that_wrote_tokens_is_in_no_percentile() -> None:
    cut = request(1, ttft=3.0, error=failed(1).error)

    metrics = measure(run([request(0, ttft=0.1), cut]))

    assert metrics.latencies["TTFT"].count == 1
    assert metrics.latencies["ITL"].count == 2


def test_token_rates_are_unknown_if_one_success_has_no_usage() -> None:
    metrics = measure(run([request(0), request(1, output_tokens=None)]))

    assert metrics.output_rate is None
    assert metrics.token_rate is None
    assert metrics.request_rate == pytest.approx(0.2)
    assert metrics.latencies["TPOT"].count == 1


def test_unknown_gpus_and_limits_give_no_number() -> None:
    metrics = measure(run([request(0)], manifest(deployment=deployment(gpus=None), workload=workload(goodput={}))))

    assert metrics.per_gpu(metrics.request_rate) is None
    assert metrics.goodput is None
    assert metrics.attainment is None


def test_without_a_success_every_latency_is_unknown() -> None:
    metrics = measure(run([failed(0), failed(1)]))

    assert {values.mean for values in metrics.latencies.values()} == {None}
    assert {values.at(99) for values in metrics.latencies.values()} == {None}
    assert metrics.request_rate == 0
    assert metrics.output_rate is None


def test_a_missing_window_is_first_scheduled_send_to_last_end() -> None:
    records = [request(0, 0.0, warmup=True), request(1, 2.0), request(2, 4.0, ttft=1.0, gaps=[0.5, 0.5])]

    assert run(records, manifest(window=None)).window == pytest.approx((2.0, 6.0))


def test_stage_means_sum_to_the_time_in_the_proxy() -> None:
    # the slowest 1% of 100 requests is the one whose stages sum to 1 + 200 + 20 + 300 ms
    def staged(index: int, prefill: float) -> RequestRecord:
        stages = Stages(queue=1.0, prefill=prefill, kv_and_first_decode=20.0, decode=300.0, decode_instance="decode-0")
        return request(index, index / 10, stages=stages)

    means = measure(run([staged(index, 200.0 if index == 40 else 100.0) for index in range(100)])).stage_means

    assert means["all"].total == pytest.approx(1 + 101 + 20 + 300)
    assert means["slowest"].requests == 1
    assert means["slowest"].total == pytest.approx(521.0)


def test_stages_that_nobody_reported_are_left_out() -> None:
    metrics = measure(run([request(0)]))

    assert metrics.stage_means == {}
    assert metrics.stages["prefill"].mean is None


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=15, deadline=None)
def test_the_order_of_records_changes_nothing(seed: int) -> None:
    records = ten_requests()
    shuffled = random.Random(seed).sample(records, len(records))

    assert asdict(measure(run(shuffled, about()))) == asdict(measure(run(records, about())))


@given(gpus=st.integers(1, 64), rate=st.floats(0, 1e6))
@hypothesis_settings(deadline=None)
def test_per_gpu_is_the_total_divided_by_gpus(gpus: int, rate: float) -> None:
    metrics = measure(run([request(0)], manifest(deployment=deployment(gpus=gpus))))

    assert metrics.per_gpu(rate) == rate / gpus


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
@hypothesis_settings(deadline=None)
def test_percentiles_are_the_contracts_own(values: list[float]) -> None:
    found = distribution(np.sort(values))

    for percentile in latency.PERCENTILES:
        assert found.at(percentile) == pytest.approx(latency.percentile(values, percentile))
