"""vLLM's arrays and chosen percentiles in the summary, and what the modes add."""

import msgspec
import pytest

from pd_contracts.records import Clock, Deployment, Failure, Manifest, RequestRecord, Workload
from pd_loadgen.results.summary import summarize


def manifest(arrival: str = "poisson", **changes: object) -> Manifest:
    return Manifest(
        run_id="r",
        created="2026-01-01T00:00:00Z",
        clock=Clock(wall=0.0, monotonic=0.0),
        deployment=Deployment(),
        workload=msgspec.structs.replace(
            Workload(dataset="random", arrival=arrival, rate=2.0, duration_s=2.0, requests=2, seed=1), **changes
        ),
        schedule_hash="abc",
        window=(10.0, 12.0),
    )


def served(index: int, sent: float, times: list[float], asked: int = 3) -> RequestRecord:
    return RequestRecord(
        index=index,
        id=f"r/{index}",
        scheduled=sent - 0.01,
        sent=sent,
        chunks=[(time, 1) for time in times],
        end=times[-1],
        prompt_tokens=7,
        output_tokens=len(times),
        requested_output_tokens=asked,
    )


FAILED = RequestRecord(
    index=0, id="r/0", scheduled=10.0, sent=10.0, end=10.5, error=Failure(kind="status", message="500: no")
)


def test_detailed_arrays_have_vllms_meaning_in_the_order_of_the_schedule() -> None:
    summary = summarize(manifest(), [served(1, 10.5, [10.75, 11.0, 11.5]), FAILED], detailed=True)

    assert summary["input_lens"] == [0, 7]
    assert summary["output_lens"] == [0, 3]
    assert summary["ttfts"] == [0.0, 0.25]
    assert summary["itls"] == [[], [0.25, 0.5]]
    assert summary["start_times"] == [10.0, 10.5]
    assert summary["errors"] == ["status: 500: no", ""]
    assert len(summary["generated_texts"]) == 2


def test_arrays_are_left_out_unless_wanted() -> None:
    assert "ttfts" not in summarize(manifest(), [FAILED])


def test_percentiles_are_added_under_vllms_names_and_ours() -> None:
    summary = summarize(manifest(), [served(0, 10.0, [10.5, 11.0])], percentiles=(99.9, 25))

    assert summary["p99.9_ttft_ms"] == summary["p25_ttft_ms"] == pytest.approx(500)
    assert set(summary["pdstack"]["latencies_ms"]["TTFT"]) == {"p25", "p50", "p90", "p95", "p99", "p99.9"}


def test_a_killed_run_is_measured_from_its_first_send_to_its_last_end() -> None:
    killed = msgspec.structs.replace(manifest(), window=None)

    assert summarize(killed, [served(0, 10.01, [10.5, 14.0])])["duration"] == pytest.approx(4.0)
    assert summarize(killed, [])["duration"] == 0.0


def test_batches_are_told_apart_by_their_sizes() -> None:
    records = [served(0, 10.01, [10.5, 11.0]), served(1, 11.01, [11.5, 13.0]), served(2, 11.01, [11.6, 13.0])]
    batches = summarize(manifest("batch", batch_sizes=[1, 2]), records)["pdstack"]["batches"]

    assert [(batch["size"], batch["served"]) for batch in batches] == [(1, 1), (2, 2)]
    assert batches[1]["window"] == (11.0, 13.0)
    assert batches[1]["output_throughput"] == pytest.approx(4 / 2)


def test_phases_are_the_difference_of_one_token_and_all() -> None:
    single = [served(0, 10.01, [10.3], asked=1), served(1, 10.51, [10.8], asked=1)]
    whole = [served(2, 11.01, [11.3, 11.5, 11.9]), served(3, 12.01, [12.3, 12.5, 12.9])]
    phases = summarize(manifest("phase-split"), [*single, *whole])["pdstack"]["phases"]

    assert (phases["prefill_ms"], phases["decode_ms"]) == (pytest.approx(300), pytest.approx(600))
    assert (phases["prefill"]["window"], phases["whole"]["window"]) == ((10.0, 10.8), (11.0, 12.9))
    assert phases["prefix_cache"] is False


def test_phases_show_that_a_server_kept_the_prefix() -> None:
    records = [served(0, 10.01, [10.4], asked=1), served(1, 11.01, [11.05, 11.2])]

    assert summarize(manifest("phase-split"), records)["pdstack"]["phases"]["prefix_cache"] is True
