"""Results of vllm bench serve as records: one reader, so that the load generator's import and the report say the same."""

import json
from pathlib import Path

import pytest

from pd_analysis.numbers.metrics import measure
from pd_analysis.records.reader import load_tree
from pd_contracts import latency, vllm_bench
from pd_contracts.names import Topology
from pd_contracts.records import Manifest, RecordError
from pd_loadgen.__main__ import main
from pd_loadgen.results.summary import summarize

RESULT: dict[str, object] = {
    "date": "20260102-030405",
    "endpoint_type": "openai",
    "backend": "openai-chat",
    "label": None,
    "model_id": "m",
    "tokenizer_id": "m",
    "num_prompts": 3,
    "request_rate": 2.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 4.0,
    "completed": 2,
    "failed": 1,
    "request_throughput": 0.5,
    "input_lens": [11, 12, 13],
    "output_lens": [3, 4, 0],
    "ttfts": [0.5, 0.25, 0.0],
    "itls": [[0.25, 0.25], [0.5], []],
    "start_times": [100.0, 100.5, 101.0],
    "generated_texts": ["a", "b", ""],
    "errors": ["", "", "Traceback\n  File x\nConnectionError: refused\n"],
}


def load(**changes: object) -> vllm_bench.VllmResult:
    return vllm_bench.read(json.dumps({**RESULT, **changes}).encode())


def made(**changes: object) -> Manifest:
    result = load(**changes)
    return vllm_bench.manifest(result, vllm_bench.records(result, "x"), "x")


def test_requests_have_their_times_tokens_and_errors() -> None:
    first, second, failed = vllm_bench.records(load(), "x")

    assert (first.scheduled, first.sent, first.end) == (100.0, 100.0, 101.0)
    assert first.chunks == [(100.5, 1), (100.75, 1), (101.0, 1)]
    assert (first.prompt_tokens, first.output_tokens) == (11, 3)
    assert second.chunks == [(100.75, 1), (101.25, 3)]  # a chunk of several tokens
    assert latency.tpot(second) == pytest.approx(0.5 / 3)
    assert failed.error is not None
    assert (failed.error.message, failed.chunks) == ("ConnectionError: refused", [])


def test_a_queue_in_the_client_moves_the_schedule_and_not_the_send() -> None:
    record = vllm_bench.records(load(queue_times=[0.0, 0.5, 0.0]), "x")[1]

    assert (record.scheduled, record.sent) == (100.0, 100.5)
    assert latency.ttft(record) == pytest.approx(0.75)
    assert latency.ttft_from_send(record) == pytest.approx(0.25)
    assert vllm_bench.FROM_SEND in made().notes
    assert vllm_bench.FROM_SEND not in made(queue_times=[0.0, 0.5, 0.0]).notes


def test_a_failure_without_a_text_is_a_failure() -> None:
    failed = vllm_bench.records(load(errors=["", "", ""]), "x")[2]

    assert failed.error is not None
    assert (failed.chunks, failed.output_tokens) == ([], None)


def test_what_the_file_counts_itself_is_compared_with_its_arrays() -> None:
    assert not [note for note in made().notes if "counts" in note]
    assert "the file counts 0 failed requests, its arrays have 1" in made(failed=0).notes
    assert "the file counts 2 failed requests, its arrays have 1" in made(failed=None, completed=1).notes


@pytest.mark.parametrize(
    ("changes", "arrival", "rate", "burstiness"),
    [
        ({}, "poisson", 2.0, 1.0),
        ({"burstiness": 0.5}, "gamma", 2.0, 0.5),
        ({"max_concurrency": 8}, "poisson", 2.0, 1.0),
        ({"request_rate": "inf", "max_concurrency": 8}, "closed", 0.75, None),
        ({"request_rate": "inf"}, "batch", 0.75, None),
        ({"request_rate": "2.0"}, "poisson", 2.0, 1.0),
    ],
)
def test_what_was_offered(changes: dict[str, object], arrival: str, rate: float, burstiness: float | None) -> None:
    workload = made(**changes).workload

    assert (workload.arrival, workload.rate, workload.burstiness) == (arrival, rate, burstiness)
    assert workload.max_concurrency == changes.get("max_concurrency")


def test_the_manifest_says_that_it_is_imported() -> None:
    manifest = made(topology="disagg", gpus="2", goodput="ttft:200", label="theirs")

    assert (manifest.window, manifest.complete, manifest.schedule_hash) == ((100.0, 104.0), True, "")
    assert (manifest.deployment.label, manifest.deployment.topology) == ("theirs", Topology.DISAGG)
    assert (manifest.deployment.gpus, manifest.workload.goodput) == (2, {"ttft": 200.0})
    assert manifest.workload.endpoint == "/v1/chat/completions"
    assert "no wall-clock anchor" in manifest.notes[0]
    assert made(date="yesterday").created == "yesterday"


def test_a_file_of_ours_is_read_back_with_the_same_figures() -> None:
    result = load()
    records = vllm_bench.records(result, "x")
    manifest = vllm_bench.manifest(result, records, "x")
    ours = summarize(manifest, records, detailed=True)
    again = vllm_bench.records(vllm_bench.read(json.dumps(ours).encode()), "x")

    figures = summarize(manifest, again, detailed=True)
    assert {key: figures[key] for key in figures if key != "errors"} == {
        key: ours[key] for key in ours if key != "errors"
    }
    assert (ours["completed"], ours["failed"], ours["duration"]) == (2, 1, 4.0)
    assert ours["mean_ttft_ms"] == pytest.approx(375)


@pytest.mark.parametrize("changes", [{"queue_times": [0.5, 0.5, 0.5]}, {"request_rate": "inf", "max_concurrency": 8}])
def test_the_import_and_the_report_say_the_same_of_a_file(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({**RESULT, **changes, "label": "theirs"}))
    assert main(["import", str(path), "--out", str(tmp_path / "run")]) == 0

    imported, read = load_tree([tmp_path / "run", path]).runs

    assert imported.manifest.workload == read.manifest.workload
    assert imported.manifest.deployment == read.manifest.deployment
    assert measure(imported).latencies == measure(read).latencies
    assert measure(imported).failures == measure(read).failures


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ttfts": [0.1]}, "--save-detailed"),
        ({"start_times": []}, "--save-detailed"),
        ({"itls": None}, "no result"),
        ({"num_prompts": 4}, "3 of 4"),
        ({"request_rate": -1}, "above 0"),
        ({"request_rate": "fast"}, "no result"),
        ({"duration": 0}, "above 0"),
        ({"goodput": "speed:1"}, "ttft, tpot or e2el"),
    ],
)
def test_what_cannot_be_counted_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecordError, match=sentence):
        load(**changes)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]"])
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError, match="no result"):
        vllm_bench.read(data)
