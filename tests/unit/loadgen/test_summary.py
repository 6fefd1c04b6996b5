"""summary.json against numbers worked out by hand."""

import msgspec
import pytest

from pd_contracts.records import ClientHealth, Clock, Deployment, Failure, Manifest, RequestRecord, Workload
from pd_loadgen.results.summary import summarize


def manifest(**changes: object) -> Manifest:
    made = Manifest(
        run_id="run-1",
        created="2026-01-01T00:00:00Z",
        clock=Clock(wall=1767225600.0, monotonic=0.0),
        deployment=Deployment(label="disagg", gpus=2),
        workload=Workload(
            dataset="random",
            arrival="poisson",
            rate=2.0,
            duration_s=2.0,
            requests=4,
            seed=1,
            model="m",
            burstiness=1.0,
            goodput={"ttft": 150.0, "tpot": 60.0},
        ),
        schedule_hash="abc",
        window=(10.0, 12.0),
        client=ClientHealth(valid=True, dispatch_lag_ms={}, receive_lag_ms={}),
        complete=True,
    )
    return msgspec.structs.replace(made, **changes)


def served(
    index: int, scheduled: float, sent: float, times: list[float], outputs: int | None, **changes: object
) -> RequestRecord:
    made = RequestRecord(
        index=index,
        id=f"run-1/r{index}",
        scheduled=scheduled,
        sent=sent,
        chunks=[(time, 1) for time in times],
        end=times[-1] + 0.01,
        prompt_tokens=10,
        output_tokens=outputs,
        status=200,
    )
    return msgspec.structs.replace(made, **changes)


# TTFT from the scheduled send 100 and 200 ms, from the send 90 and 190; TPOT 50 ms each; E2EL 200 and 250
FIRST = served(0, 10.0, 10.01, [10.1, 10.15, 10.2], 3)
SECOND = served(1, 10.5, 10.51, [10.7, 10.75], 2)
FAILED = RequestRecord(
    index=2, id="run-1/r2", scheduled=11.0, sent=11.0, end=11.1, status=500, error=Failure(kind="status", message="500")
)
REFUSED = RequestRecord(
    index=3, id="run-1/r3", scheduled=11.5, end=11.5, error=Failure(kind="connect", message="refused")
)
WARMUP = served(0, 1.0, 1.0, [5.0, 6.0], 2, warmup=True)
ALL = [WARMUP, FIRST, SECOND, FAILED, REFUSED]


def test_totals_are_over_the_window_without_warm_ups_and_failures() -> None:
    summary = summarize(manifest(), ALL)

    assert (summary["completed"], summary["failed"], summary["num_prompts"], summary["duration"]) == (2, 2, 4, 2.0)
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (20, 5)
    assert summary["request_throughput"] == 1.0
    assert summary["output_throughput"] == 2.5
    assert summary["total_token_throughput"] == 12.5


def test_vllm_keys_count_from_the_actual_send() -> None:
    summary = summarize(manifest(), ALL)

    assert summary["mean_ttft_ms"] == summary["median_ttft_ms"] == pytest.approx(140)
    assert summary["std_ttft_ms"] == pytest.approx(50)
    assert summary["p99_ttft_ms"] == pytest.approx(189)  # 90 + 0.99 × 100
    assert summary["mean_tpot_ms"] == pytest.approx(50)
    assert summary["median_itl_ms"] == pytest.approx(50)
    assert summary["mean_e2el_ms"] == pytest.approx((190 + 240) / 2)


def test_ours_count_from_the_scheduled_send() -> None:
    latencies = summarize(manifest(), ALL)["pdstack"]["latencies_ms"]

    assert latencies["TTFT"]["p50"] == pytest.approx(150)
    assert latencies["TPOT"]["p99"] == pytest.approx(50)
    assert latencies["E2EL"]["p50"] == pytest.approx(225)
    assert latencies["E2EL"]["p90"] == pytest.approx(245)


def test_goodput_counts_failures_as_misses() -> None:
    summary = summarize(manifest(), ALL)

    assert summary["request_goodput"] == 0.5  # one of them, in two seconds
    assert summary["pdstack"]["attainment"] == {"ttft": 0.25, "tpot": 0.5, "all": 0.25}
    assert summary["pdstack"]["failures"] == {"status": 1, "connect": 1}


def test_peaks_are_exact() -> None:
    summary = summarize(manifest(), [FIRST, SECOND, served(2, 10.15, 10.15, [10.3, 11.2], 2)])

    assert summary["max_concurrent_requests"] == 2
    assert summary["max_output_tokens_per_s"] == 6.0


def test_requests_that_touch_were_not_concurrent() -> None:
    early = served(0, 10.0, 10.0, [10.4], 1, end=10.5)
    late = served(1, 10.5, 10.5, [10.6], 1)

    assert summarize(manifest(), [early, late])["max_concurrent_requests"] == 1


def test_numbers_are_also_per_gpu() -> None:
    assert summarize(manifest(), ALL)["pdstack"]["per_gpu"] == {"request_throughput": 0.5, "output_throughput": 1.25}
    assert summarize(manifest(deployment=Deployment()), ALL)["pdstack"]["per_gpu"] is None


def test_without_usage_tokens_are_unknown_and_never_guessed() -> None:
    silent = msgspec.structs.replace(SECOND, prompt_tokens=None, output_tokens=None)
    summary = summarize(manifest(), [FIRST, silent])

    assert summary["total_output_tokens"] is None
    assert summary["output_throughput"] is None
    assert summary["total_token_throughput"] is None
    assert summary["request_throughput"] == 1.0
    assert summary["mean_tpot_ms"] == pytest.approx(50)  # of the one that is known


def test_a_run_without_any_success_has_no_latencies_and_no_error() -> None:
    summary = summarize(manifest(), [FAILED])

    assert (summary["completed"], summary["failed"], summary["mean_ttft_ms"], summary["p99_itl_ms"]) == (
        0,
        1,
        None,
        None,
    )
    assert summary["pdstack"]["attainment"] == {"ttft": 0.0, "tpot": 0.0, "all": 0.0}


def test_without_limits_there_is_no_goodput() -> None:
    unlimited = manifest(workload=msgspec.structs.replace(manifest().workload, goodput={}))
    summary = summarize(unlimited, ALL)

    assert (summary["request_goodput"], summary["pdstack"]["attainment"]) == (None, None)


def test_the_keys_are_those_of_vllm_bench_serve() -> None:
    spreads = {
        f"{kind}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el") for kind in ("mean", "median", "std", "p99")
    }
    expected = {
        "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness",
        "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests",
    }  # fmt: skip

    assert expected | spreads <= set(summarize(manifest(), ALL))


def test_chat_is_named_as_vllm_names_it() -> None:
    chat = manifest(workload=msgspec.structs.replace(manifest().workload, endpoint="/v1/chat/completions"))

    assert summarize(chat, ALL)["backend"] == "openai-chat"
