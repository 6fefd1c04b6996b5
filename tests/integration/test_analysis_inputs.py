"""Other inputs and outputs: results of `vllm bench serve`, tables for other programs, the check against a baseline, the cut."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.analysis import deployment, manifest, request, workload, write_pair, write_run

from pd_analysis.main import main
from pd_analysis.numbers.metrics import measure
from pd_analysis.records.reader import load_tree
from pd_contracts.names import Topology

# Three requests sent at 0, 1 and 2 s; the last failed. TTFT 100 and 200 ms; gaps of 10 and 30 ms.
BENCH: dict[str, Any] = {
    "date": "20260401-120000",
    "endpoint_type": "openai-chat",
    "label": None,
    "model_id": "llama",
    "num_prompts": 3,
    "request_rate": 1.0,
    "burstiness": 1.0,
    "duration": 3.0,
    "request_throughput": 0.67,
    "completed": 2,
    "topology": "disagg",
    "gpus": "2",
    "goodput": "ttft:150",
    "input_lens": [100, 100, 100],
    "output_lens": [3, 3, 0],
    "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.01, 0.01], [0.03, 0.03], []],
    "start_times": [500.0, 501.0, 502.0],
    "errors": ["", "", "Traceback\nClientError: 502"],
}


def bench(folder: Path, **changes: object) -> Path:
    path = folder / "vllm-1.0qps.json"
    path.write_text(json.dumps({key: value for key, value in (BENCH | changes).items() if value is not ...}))
    return path


def test_a_vllm_bench_result_is_a_run(tmp_path: Path) -> None:
    bench(tmp_path)

    (run,) = load_tree([tmp_path]).runs
    metrics = measure(run)

    assert (run.manifest.deployment.topology, metrics.gpus) == (Topology.DISAGG, 2)
    assert (metrics.requests, metrics.failures) == (3, {"error": 1})
    assert metrics.latencies["TTFT"].mean == pytest.approx(0.15)
    assert metrics.latencies["TPOT"].mean == pytest.approx(0.02)
    assert metrics.latencies["E2EL"].mean == pytest.approx((0.12 + 0.26) / 2)
    assert metrics.latencies["ITL"].count == 4
    assert metrics.attainment == pytest.approx(1 / 3)
    assert run.requests.rows["failure_message"].tolist()[-1] == "ClientError: 502"
    assert run.window == pytest.approx((500.0, 503.0))  # the file's own duration


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"ttfts": ..., "itls": ..., "start_times": ...}, "--save-detailed", id="sums only"),
        pytest.param({"itls": [[0.01]]}, "--save-detailed", id="arrays of other lengths"),
        pytest.param({"num_prompts": 4}, "3 of 4", id="partial"),
        pytest.param({"duration": "long"}, "duration", id="broken"),
    ],
)
def test_a_result_that_may_not_be_counted_is_left_out(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    bench(tmp_path, **changes)

    loaded = load_tree([tmp_path])

    assert loaded.runs == []
    assert [reason in problem.sentence for problem in loaded.problems] == [True]


def test_our_own_summaries_and_other_json_are_no_results(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [request(0)])
    (tmp_path / "run" / "summary.json").write_text('{"request_throughput": 1, "num_prompts": 1}')
    (tmp_path / "other.json").write_text("{}")

    loaded = load_tree([tmp_path])

    assert [run.path.name for run in loaded.runs] == ["run"]
    assert loaded.problems == []


def test_vllm_bench_and_our_runs_go_into_one_report(tmp_path: Path) -> None:
    write_pair(tmp_path, requests=20, tokens=4)
    bench(tmp_path)

    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert "vllm bench serve" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_export_writes_every_load_and_every_request(tmp_path: Path, format_: str) -> None:
    write_pair(tmp_path / "runs", requests=30, tokens=4)

    assert main(["export", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--format", format_]) == 0

    read = pd.read_parquet if format_ == "parquet" else pd.read_csv
    runs, requests = (read(tmp_path / "out" / f"{name}.{format_}") for name in ("runs", "requests"))
    combined = next(run for run in load_tree([tmp_path / "runs"]).runs if run.path.name == "combined")
    ttft_ms = (measure(combined).latencies["TTFT"].at(99) or 0.0) * 1e3
    row = runs[runs["label"] == "combined"].iloc[0]
    assert row["ttft_p99_ms"] == pytest.approx(ttft_ms)
    assert row["ttft_p99_ms_low"] <= ttft_ms <= row["ttft_p99_ms_high"]
    assert requests.groupby("name").size().to_dict() == {"combined": 30, "disagg": 30}
    assert requests["ttft"].notna().all()


def served(folder: Path, ttft: float, *, rate: float = 20.0, label: str = "combined") -> Path:
    records = [request(index, index / rate, ttft=ttft) for index in range(100)]
    return write_run(folder, records, manifest(deployment=deployment(label=label), workload=workload(rate=rate)))


@pytest.mark.parametrize(
    ("ttft", "options", "status"),
    [
        pytest.param(0.1, [], 0, id="equal"),
        pytest.param(0.05, [], 0, id="better"),
        pytest.param(0.13, [], 1, id="worse"),
        pytest.param(0.13, ["--tolerance", "50"], 0, id="worse, but accepted"),
    ],
)
def test_the_exit_status_tells_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ttft: float, options: list[str], status: int
) -> None:
    before, now = served(tmp_path / "before", 0.1), served(tmp_path / "now", ttft)

    assert main(["compare", str(now), "--baseline", str(before), *options]) == status
    shown = capsys.readouterr().out
    assert ("combined: TTFT p99 is 130 ms, was 100 ms (1.30×)" in shown) == (status == 1)


def test_a_baseline_without_the_same_load_is_an_error_and_not_a_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = served(tmp_path / "before", 0.1, rate=2.0), served(tmp_path / "now", 0.1)

    assert main(["compare", str(now), "--baseline", str(before)]) == 2
    assert "can be compared" in capsys.readouterr().err


def test_the_cut_leaves_the_beginning_out(tmp_path: Path) -> None:
    write_run(tmp_path, [request(0, 0.0, warmup=True), *(request(index, float(index)) for index in range(1, 9))])

    (run,) = load_tree([tmp_path], cut_s=4.5).runs

    assert run.window == pytest.approx((5.5, 8.12))
    assert measure(run).requests == 3
    assert measure(run).request_rate == pytest.approx(3 / 2.62)


@pytest.mark.parametrize("options", [["--cut", "-1"], ["--cut", "soon"]])
def test_a_bad_cut_is_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["report", *options])

    assert refused.value.code == 2
