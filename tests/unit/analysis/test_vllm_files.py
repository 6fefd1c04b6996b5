"""Results of `vllm bench serve`, alone and in the folders of `vllm bench sweep serve`."""

import json
from pathlib import Path
from typing import Any

import pytest

from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.comparison import compared
from pd_analysis.numbers.evaluation import evaluate, grouped, together
from pd_analysis.numbers.measures import DECIDING, TTFT_P50
from pd_analysis.numbers.sweep import sweeps
from pd_analysis.records.reader import load_tree


def result(
    path: Path, *, in_flight: int | None = None, rate: float | str = "inf", ttft: float = 0.05, **more: Any
) -> Path:
    """A file of 40 requests of 32 tokens, sent one after the other."""
    count = 40
    starts = [1000.0 + index * 0.1 for index in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "date": "20260818-041350",
        "endpoint_type": "openai",
        "model_id": "facebook/opt-125m",
        "num_prompts": count,
        "request_rate": rate,
        "burstiness": 1.0,
        "max_concurrency": in_flight,
        "duration": 5.0,
        "completed": count,
        "request_throughput": 8.0,
        "input_lens": [512] * count,
        "output_lens": [32] * count,
        "ttfts": [ttft + index * 1e-4 for index in range(count)],
        "itls": [[0.01] * 31] * count,
        "start_times": starts,
        "errors": [""] * count,
    }
    path.write_text(json.dumps(body | more))
    return path


def test_files_at_32_and_at_4_in_flight_are_not_compared(tmp_path: Path) -> None:
    result(tmp_path / "plain.json", in_flight=32, ttft=1.0, duration=6.0, label="plain", topology="combined", gpus=2)
    result(tmp_path / "disagg.json", in_flight=4, label="disagg", topology="disagg", gpus=2)
    results = evaluate(load_tree([tmp_path]).runs)

    assert [len(group.results) for group in grouped(results)] == [1, 1]
    asked = together(results)
    assert {compared(measure, *asked.results).winner for measure in DECIDING} == {None}
    assert any("not offered the same load" in doubt.sentence for doubt in doubts(asked))
    assert not any("poisson" in group.workload or "requests/s" in group.workload for group in grouped(results))


def test_failures_with_an_empty_error_text_are_failures(tmp_path: Path) -> None:
    failed = [index % 2 == 0 for index in range(40)]
    path = result(
        tmp_path / "overloaded.json",
        rate=4.0,
        ttfts=[0.0 if bad else 0.08 for bad in failed],
        itls=[[] if bad else [0.02] * 31 for bad in failed],
        output_lens=[0 if bad else 32 for bad in failed],
        completed=20,
        failed=20,
    )
    (measured,) = evaluate(load_tree([path]).runs)

    assert (measured.metrics.successes, sum(measured.metrics.failures.values())) == (20, 20)
    assert measured.metrics.latencies["TTFT"].at(50) == pytest.approx(0.08)


def test_files_of_one_folder_over_concurrencies_are_one_curve(tmp_path: Path) -> None:
    for count in (1, 4, 16):
        result(tmp_path / "opt" / f"openai-infqps-concurrency{count}-opt-125m.json", in_flight=count, ttft=count / 50)

    (found,) = sweeps(evaluate(load_tree([tmp_path]).runs))

    assert [series.name for series in found.series] == ["opt"]
    assert [x for x, _ in found.series[0].points(TTFT_P50.get)] == [1, 4, 16]


def swept(root: Path, servers: tuple[str, ...], *, runs: int = 1) -> None:
    for server in servers:
        for count in (4, 16):
            parts = [f"SERVE--{server}"] if server else []
            folder = root / "20260818_041350" / "-".join([*parts, f"BENCH--max_concurrency={count}"])
            for number in range(runs):
                result(
                    folder / f"run={number}.json", in_flight=count, ttft=count / 50 + number / 100, run_number=number
                )
            (folder / "summary.json").write_text("[]")


def test_a_tree_of_vllm_bench_sweep_is_one_curve_for_each_server(tmp_path: Path) -> None:
    swept(tmp_path, ("max_num_seqs=32", "max_num_seqs=64"))

    (found,) = sweeps(evaluate(load_tree([tmp_path]).runs))

    assert [series.name for series in found.series] == ["max_num_seqs=32", "max_num_seqs=64"]
    assert all([x for x, _ in series.points(TTFT_P50.get)] == [4, 16] for series in found.series)


def test_without_serve_parameters_it_is_the_experiments(tmp_path: Path) -> None:
    swept(tmp_path, ("",))

    (found,) = sweeps(evaluate(load_tree([tmp_path]).runs))

    assert [series.name for series in found.series] == ["20260818_041350"]


def test_runs_of_a_sweep_repeat_their_point_and_its_warm_up_is_none(tmp_path: Path) -> None:
    swept(tmp_path, ("",), runs=3)
    folder = next((tmp_path / "20260818_041350").iterdir())
    result(folder / "warmup.json", in_flight=4, ttft=9.0, run_number=-1)

    (found,) = sweeps(evaluate(load_tree([tmp_path]).runs))

    assert [len(point.runs) for point in found.series[0].results] == [3, 3]
    assert all((point.metrics.latencies["TTFT"].at(99) or 0) < 1 for point in found.series[0].results)
