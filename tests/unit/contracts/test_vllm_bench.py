"""Results of vllm bench serve as records: one reader, so that the load generator's import and the report say the same."""

import json
import math
from pathlib import Path

import pytest

from pd_analysis.numbers.evaluation import evaluate
from pd_analysis.numbers.metrics import measure
from pd_analysis.records.reader import load_tree
from pd_contracts import latency, vllm_bench, vllm_result
from pd_contracts.names import Topology
from pd_contracts.records import MANIFEST, Manifest, RecordError, read_json
from pd_contracts.vllm_result import VllmResult
from pd_loadgen.main import main
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


def load(**changes: object) -> VllmResult:
    (result,) = vllm_result.read(json.dumps({**RESULT, **changes}).encode())
    return result


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
    again = vllm_bench.records(vllm_result.read(json.dumps(ours).encode())[0], "x")

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
        ({"start_times": [1.0]}, "--save-detailed"),
        ({"itls": None}, "--save-detailed"),
        ({"itls": [1, 2, 3]}, "not a result"),
        ({"output_lens": [3, -4, 0]}, "not a result"),
        ({"num_prompts": 4}, "3 of 4"),
        ({"request_rate": -1}, "above 0"),
        ({"request_rate": "fast"}, "above 0"),
        ({"request_rate": math.nan}, "above 0"),
        ({"duration": 0}, "above 0"),
    ],
)
def test_what_cannot_be_counted_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecordError, match=sentence):
        load(**changes)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]", b'{"duration": 3}', b'{"a": 1}{'])
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError, match="not a result"):
        vllm_result.read(data)


@pytest.mark.parametrize(
    ("data", "program"),
    [
        ({"metadata": {}, "benchmarks": []}, "GuideLLM"),
        ({"version": "0.0.16", "experiments": []}, "genai-perf"),
        ({"request_throughput": {"unit": "requests/sec", "avg": 3}, "input_config": {}}, "AIPerf"),
        ({"version": "x", "results_num_completed_requests": 3}, "LLMPerf"),
        ({"load_summary": {}, "successes": {}}, "inference-perf"),
    ],
)
def test_results_of_other_programs_are_named(data: object, program: str) -> None:
    with pytest.raises(RecordError, match=f"a result of {program}, which is not supported"):
        vllm_result.read(json.dumps(data).encode())


@pytest.mark.parametrize("between", ["", "\n", "\n\n", ",\n"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n"])
def test_results_that_were_appended_to_one_file_are_all_read(before: str, between: str) -> None:
    text = before + between.join(json.dumps({**RESULT, "label": name}, indent=1) for name in "abc") + "\n"

    assert [result.label for result in vllm_result.read(text.encode())] == ["a", "b", "c"]
    assert [result.label for result in vllm_result.read(text.lstrip("\ufeff").encode("utf-16"))] == ["a", "b", "c"]


def test_nan_beside_the_numbers_that_are_read_changes_nothing() -> None:
    assert load(mean_itl_ms=math.nan, rtfx=math.inf).remarks == []
    broken = vllm_bench.records(load(ttfts=[0.5, math.nan, 0.0]), "x")[1]

    assert broken.error is not None
    assert broken.chunks == []


@pytest.mark.parametrize(
    ("told", "gpus"),
    [
        ("4", 4),
        (4, 4),
        ("4xL40S", 4),
        ("2 x H100", 2),
        ("8 GPUs", 8),
        ("1", 1),
        ("H100", None),
        ("A100x4", 4),
        ("", None),
    ],
)
def test_metadata_is_read_in_whatever_form_it_was_typed(told: object, gpus: int | None) -> None:
    manifest = made(gpus=told)

    assert manifest.deployment.gpus == gpus
    assert any("is not a number of GPUs" in note for note in manifest.notes) == (gpus is None)


def test_metadata_that_is_not_understood_costs_itself_and_not_the_numbers() -> None:
    assert made(topology=["disagg"]).deployment.topology is None
    manifest = made(topology="1P3D", goodput="speed:1", mystery=[1, {"a": 2}])

    assert (manifest.deployment.topology, manifest.workload.goodput) == (None, {})
    assert len([note for note in manifest.notes if "metadata" in note]) == 2
    assert manifest.workload.requests == 3


def test_an_old_file_without_start_times_has_latencies_and_no_place_in_time() -> None:
    result = load(start_times=None, completed=2)
    first, second, failed = vllm_bench.records(result, "x")
    manifest = vllm_bench.manifest(result, [first, second, failed], "x")
    timed = vllm_bench.records(load(), "x")

    assert (latency.ttft(first), latency.e2el(first), first.sent) == (0.5, 1.0, None)
    assert latency.tpot(second) == latency.tpot(timed[1])
    assert failed.error is not None
    assert manifest.window == (0.0, 4.0)
    assert vllm_bench.WITHOUT_TIMES in manifest.notes


def test_a_line_of_sglangs_benchmark_is_read() -> None:
    theirs = {
        name: value
        for name, value in RESULT.items()
        if name not in ("num_prompts", "failed", "date", "model_id", "start_times", "label")
    }
    (result,) = vllm_result.read(
        json.dumps({**theirs, "backend": "sglang-oai-chat", "request_rate": math.inf, "max_concurrency": 4}).encode()
    )
    workload = vllm_bench.manifest(result, vllm_bench.records(result, "x"), "x").workload

    assert (workload.requests, workload.arrival, workload.max_concurrency) == (3, "closed", 4)
    assert workload.endpoint == "/v1/chat/completions"


def test_a_failure_that_had_begun_and_has_no_text_is_a_failure() -> None:
    cut = vllm_bench.records(load(ttfts=[0.5, 0.25, 0.4], itls=[[0.25, 0.25], [0.5], [0.1]], errors=["", "", ""]), "x")[
        2
    ]

    assert cut.error is not None


def test_a_rising_rate_is_told_from_a_steady_one() -> None:
    workload = made(request_rate="inf", ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=9).workload

    assert (workload.arrival, workload.rate, workload.options) == (
        "ramp",
        9.0,
        {"ramp_up": "linear", "start_rate": "1"},
    )


def test_the_back_ends_name_is_no_label() -> None:
    assert made(label="openai-chat").deployment.label == made(label="openai").deployment.label == ""
    assert made(label="plain").deployment.label == "plain"


def sweep(root: Path) -> None:
    for server in ("16", "32"):
        for flight in (1, 4):
            folder = root / f"SERVE--max_num_seqs={server}-BENCH--max_concurrency={flight}"
            folder.mkdir(parents=True)
            result = {**RESULT, "request_rate": "inf", "max_concurrency": flight, "run_number": 0}
            for name in ("run=0.json", "run=1.json", "warmup.json"):
                (folder / name).write_text(json.dumps(result))
            (folder / "summary.json").write_text(json.dumps([result]))


def test_a_parameter_sweep_becomes_runs_of_one_deployment_for_each_server(tmp_path: Path) -> None:
    sweep(tmp_path / "20260102_030405")
    assert main(["import", str(tmp_path / "20260102_030405"), "--out", str(tmp_path / "runs")]) == 0

    manifests = [read_json(path, Manifest) for path in sorted((tmp_path / "runs").rglob(MANIFEST))]
    assert len(manifests) == 8
    # repeats keep their names, by which the report pools them
    assert {path.parent.name for path in (tmp_path / "runs").rglob(MANIFEST)} == {"run=0", "run=1"}
    loaded, direct = (evaluate(load_tree([tmp_path / name]).runs) for name in ("runs", "20260102_030405"))
    assert (
        {result.name for result in loaded}
        == {result.name for result in direct}
        == {"max_num_seqs=16", "max_num_seqs=32"}
    )
    assert sorted({one.deployment.label for one in manifests}) == ["max_num_seqs=16", "max_num_seqs=32"]
    assert sorted({(one.workload.arrival, one.workload.max_concurrency) for one in manifests}) == [
        ("closed", 1),
        ("closed", 4),
    ]


def test_a_folder_of_results_is_one_deployment_unless_they_have_labels(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for flight in (1, 4):
        (folder / f"c{flight}.json").write_text(
            json.dumps({**RESULT, "request_rate": "inf", "max_concurrency": flight})
        )
    (folder / "other.json").write_text(json.dumps({**RESULT, "label": "disagg"}))
    assert main(["import", str(folder), "--out", str(tmp_path / "runs")]) == 0

    labels = {
        path.parent.name: read_json(path, Manifest).deployment.label for path in (tmp_path / "runs").rglob(MANIFEST)
    }
    assert labels == {"c1": "plain", "c4": "plain", "other": "disagg"}


def test_a_file_that_was_named_and_is_no_result_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "guide.json"
    path.write_text(json.dumps({"benchmarks": [], "metadata": {}}))
    (problem,) = load_tree([path]).problems

    assert "a result of GuideLLM" in str(problem.sentence)
