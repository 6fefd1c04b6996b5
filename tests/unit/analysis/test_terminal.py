"""The closing table fits a terminal and has all that it must."""

import io

import pytest
from rich.console import Console
from support.analysis import deployment, failed, manifest, request, run, workload

from pd_analysis.numbers.evaluation import evaluate, together
from pd_analysis.records.run import Run
from pd_analysis.report.terminal import table_of
from pd_analysis.words.language import in_language
from pd_contracts.names import Topology


def shown(*runs: Run) -> list[str]:
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    console.print(table_of(together(evaluate(runs))))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def served(
    topology: Topology, *, ttft: float = 0.1, label: str = "", rate: float = 1.0, simulated: bool = False
) -> Run:
    served_by = deployment(topology, label=label or topology.value, simulated=simulated)
    about = manifest(topology, deployment=served_by, workload=workload(rate=rate))
    return run([request(index, index / 20, ttft=ttft) for index in range(100)], about)


def _row(lines: list[str], title: str) -> list[str]:
    (line,) = [line for line in lines if f" {title} " in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_two_runs_stand_beside_each_other_with_their_ratio() -> None:
    lines = shown(served(Topology.DISAGG, ttft=0.2), served(Topology.COMBINED, ttft=0.1))

    assert _row(lines, "TTFT p99, ms") == ["TTFT p99, ms", "100", "200", "2.00× worse"]
    assert _row(lines, "TPOT p99, ms") == ["TPOT p99, ms", "10.0", "10.0", "1.00× equal"]
    # 100 requests × 3 tokens / 10 s / 2 GPUs
    assert _row(lines, "Output tokens per GPU, tok/s")[1] == "15.0"


def test_unknown_is_a_dash_and_failures_stand_behind_the_requests() -> None:
    lines = shown(run([request(0), failed(1)]))

    assert _row(lines, "Energy per output token, J")[1] == "–"
    assert _row(lines, "Requests (failed)")[1] == "2 (1)"


def test_simulated_is_in_the_title() -> None:
    assert "SIMULATED" in shown(served(Topology.DISAGG, simulated=True))[0]
    assert "SIMULATED" not in "".join(shown(served(Topology.DISAGG)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_any_number_of_runs_fits_a_hundred_columns(count: int) -> None:
    runs = [served(Topology.DISAGG, label=f"a label that is rather long {n}", rate=1000.0 + n) for n in range(count)]

    lines = shown(*runs)

    assert max(map(len, lines)) <= 100
    assert not any("…" in cell for line in lines if line.startswith("│") for cell in line.strip("│").split("│")[1:])


def test_brackets_in_a_label_are_shown_as_they_are() -> None:
    assert "[red]x[/y]" in "".join(shown(served(Topology.DISAGG, label="[red]x[/y]")))


def test_the_table_is_in_the_readers_language() -> None:
    many = [served(Topology.DISAGG, label=f"r{number}") for number in range(5)]

    with in_language("zh"):
        beside, below = "\n".join(shown(many[0], many[1])), "\n".join(shown(*many))

    assert "请求数（失败数）" in beside
    assert "失败" in below
    assert "ailed" not in beside + below
