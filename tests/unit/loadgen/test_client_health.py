"""The verdict on the client itself."""

from collections.abc import Sequence

import pytest

from pd_contracts.latency import percentile
from pd_contracts.records import ClientHealth
from pd_loadgen.verdict import client_health, lag_histogram
from pd_loadgen.verdict.client_health import KERNEL, PROCESS


def count(seconds: Sequence[float]) -> dict[int, int]:
    counted = lag_histogram.LagHistogram()
    for one in seconds:
        counted.add(one)
    return counted.counts


def verdict(
    dispatch: Sequence[float],
    receive: Sequence[float],
    *,
    looked: Sequence[float] = (),
    cpu_fraction: float | None = None,
    limit_ms: float = 10,
    merged: float = 0.0,
    stamps: str = PROCESS,
) -> ClientHealth:
    return client_health.verdict(
        dispatch=dispatch,
        receive=count(receive),
        looked=count(looked),
        merged=merged,
        stamps=stamps,
        cpu_fraction=cpu_fraction,
        limit_ms=limit_ms,
    )


def test_a_client_in_time_is_valid_and_needs_no_remedy() -> None:
    judged = verdict(dispatch=[0.001] * 100, receive=[], looked=[0.0005] * 100, cpu_fraction=0.3, limit_ms=10)

    assert judged.valid
    assert judged.remedy == ""
    assert judged.dispatch_lag_ms == {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0}
    assert (judged.cpu_fraction, judged.limit_ms) == (0.3, 10)


def test_late_sends_make_a_run_invalid_with_the_number_and_a_remedy() -> None:
    judged = verdict(dispatch=[0.001] * 90 + [0.02] * 10, receive=[0.001], cpu_fraction=None, limit_ms=10)

    assert not judged.valid
    assert "sent requests 20.0 ms late" in judged.remedy
    assert "looked at sockets" not in judged.remedy
    assert "limit 10 ms" in judged.remedy
    assert "--lag-limit-ms" in judged.remedy


def test_a_late_loop_makes_a_run_invalid_whatever_the_sends_say() -> None:
    judged = verdict(dispatch=[0.001], receive=[], looked=[0.03] * 5, cpu_fraction=0.2, limit_ms=10)

    assert not judged.valid
    assert "looked at sockets 30.0 ms late" in judged.remedy


def test_one_slow_moment_in_a_thousand_is_forgiven() -> None:
    judged = verdict(dispatch=[0.001] * 999 + [0.5], receive=[0.001] * 10, cpu_fraction=None, limit_ms=10)

    assert judged.valid
    assert judged.dispatch_lag_ms["max"] == 500.0


def test_without_any_send_nothing_is_held_against_the_client() -> None:
    judged = verdict(dispatch=[], receive=[0.001], cpu_fraction=None, limit_ms=10)

    assert judged.valid
    assert judged.dispatch_lag_ms == {}


def test_late_reads_do_no_harm_to_the_kernels_stamps_unless_chunks_were_merged() -> None:
    late = [0.03] * 5

    assert verdict(dispatch=[0.001], receive=late, stamps=KERNEL).valid
    assert not verdict(dispatch=[0.001], receive=late, stamps=KERNEL, merged=0.02).valid
    assert not verdict(dispatch=[0.03], receive=[], stamps=KERNEL).valid


def test_a_late_loop_counts_where_a_stamp_is_shared_or_the_processs_own() -> None:
    """The last of merged chunks may have come just before the read that the first one waited for."""
    late, prompt = [0.03] * 5, [0.001] * 5

    assert verdict(dispatch=[0.001], receive=prompt, looked=late, stamps=KERNEL).valid
    for blind in (
        verdict(dispatch=[0.001], receive=prompt, looked=late, stamps=KERNEL, merged=0.02),
        verdict(dispatch=[0.001], receive=[], looked=late, stamps=PROCESS),
    ):
        assert not blind.valid
        assert blind.receive_lag_ms["p99"] == pytest.approx(30, abs=0.1)
    # a server that writes several at once merges chunks, too, but the loop is in time
    assert verdict(dispatch=[0.001], receive=prompt, looked=prompt, stamps=KERNEL, merged=0.9).valid


def test_counted_lags_have_the_percentiles_of_the_lags_to_a_step() -> None:
    values = [number / 10_000 for number in range(1000)]  # 0 to 99.9 ms
    halves = [count(values[::2]), count(values[1::2])]

    counted = lag_histogram.pooled(halves)

    assert sum(counted.values()) == 1000
    for q, expected in ((50, 0.05), (99, 0.099), (100, 0.0999)):
        assert lag_histogram.percentile(counted, q) == pytest.approx(expected, abs=0.00015)
    assert lag_histogram.percentile({}, 99) is None


@pytest.mark.parametrize("q", [0, 50, 90, 99, 99.9, 100])
def test_counted_lags_have_the_percentiles_of_the_lags(q: float) -> None:
    lags = [0.001 * n * n for n in range(1, 38)]

    counted, exact = lag_histogram.percentile(count(lags), q), percentile(lags, q)

    assert counted == pytest.approx(exact, abs=1.01 / lag_histogram.STEPS_A_SECOND)  # rounded up to a step
    assert lag_histogram.percentile({}, q) is None


def test_lags_of_the_send_and_of_the_read_have_one_percentile() -> None:
    lags = [0.0001] * 98 + [0.004, 0.02]

    judged = verdict(dispatch=lags, receive=[], looked=lags)

    assert judged.dispatch_lag_ms == pytest.approx(judged.receive_lag_ms, abs=0.02)
