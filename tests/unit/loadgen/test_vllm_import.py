"""Results of vllm bench serve, imported."""

import json

import pytest

from pd_contracts import latency
from pd_loadgen.results import vllm_import
from pd_loadgen.results.summary import summarize
from pd_loadgen.results.vllm_import import ForeignError

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
    "input_lens": [11, 12, 13],
    "output_lens": [3, 4, 0],
    "ttfts": [0.5, 0.25, 0.0],
    "itls": [[0.25, 0.25], [0.5], []],
    "start_times": [100.0, 100.5, 101.0],
    "generated_texts": ["a", "b", ""],
    "errors": ["", "", "Traceback\n  File x\nConnectionError: refused\n"],
}


def load(**changes: object) -> vllm_import.VllmResult:
    return vllm_import.read(json.dumps({**RESULT, **changes}).encode())


def test_requests_have_their_times_tokens_and_errors() -> None:
    first, second, failed = vllm_import.records(load(), "x")

    assert (first.scheduled, first.sent, first.end) == (100.0, 100.0, 101.0)
    assert first.chunks == [(100.5, 1), (100.75, 1), (101.0, 1)]
    assert (first.prompt_tokens, first.output_tokens) == (11, 3)
    assert second.chunks == [(100.75, 1), (101.25, 3)]  # a chunk of several tokens
    assert latency.tpot(second) == pytest.approx(0.5 / 3)
    assert failed.error is not None
    assert (failed.error.message, failed.chunks) == ("ConnectionError: refused", [])


def test_a_queue_in_the_client_moves_the_schedule_and_not_the_send() -> None:
    record = vllm_import.records(load(queue_times=[0.0, 0.5, 0.0]), "x")[1]

    assert (record.scheduled, record.sent) == (100.0, 100.5)
    assert latency.ttft(record) == pytest.approx(0.75)
    assert latency.ttft_from_send(record) == pytest.approx(0.25)


def test_a_file_of_ours_is_read_back_with_the_same_figures() -> None:
    result = load()
    made = vllm_import.records(result, "x")
    manifest = vllm_import.manifest(result, made, "x", gpus=2)
    ours = summarize(manifest, made, detailed=True)
    again = vllm_import.records(vllm_import.read(json.dumps(ours).encode()), "x")

    figures = summarize(manifest, again, detailed=True)
    assert {key: figures[key] for key in figures if key != "errors"} == {
        key: ours[key] for key in ours if key != "errors"
    }
    assert (ours["completed"], ours["failed"], ours["duration"]) == (2, 1, 4.0)
    assert ours["mean_ttft_ms"] == pytest.approx(375)


def test_the_manifest_says_what_was_offered_and_that_it_is_imported() -> None:
    result = load(request_rate="inf", max_concurrency=8)
    manifest = vllm_import.manifest(result, vllm_import.records(result, "x"), "x", label="theirs")

    assert (manifest.workload.arrival, manifest.workload.max_concurrency, manifest.workload.rate) == ("closed", 8, 0.75)
    assert (manifest.window, manifest.complete, manifest.deployment.label) == ((100.0, 104.0), True, "theirs")
    assert manifest.workload.endpoint == "/v1/chat/completions"
    assert "no wall-clock anchor" in manifest.notes[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ttfts": [0.1]}, "different lengths"),
        ({"start_times": []}, "empty"),
        ({"itls": None}, "--save-detailed"),
    ],
)
def test_what_lacks_the_arrays_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ForeignError, match=sentence):
        load(**changes)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]"])
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(ForeignError, match="no result"):
        vllm_import.read(data)
