"""The committed results: their reports are what their records give, and show what the modes are for."""

import runpy
from pathlib import Path

import pytest

from pd_analysis.numbers.evaluation import Group, evaluate, grouped
from pd_analysis.numbers.load import Pace
from pd_analysis.numbers.phase_split import phase_split
from pd_analysis.plots.modes import by_batch_size, by_phase
from pd_analysis.records.reader import load_tree
from pd_analysis.tables.comparison import overview
from pd_analysis.tables.modes import mode_table

ROOT = Path(__file__).parents[2]
WRITER = runpy.run_path(str(ROOT / "docs/write_results.py"))


@pytest.fixture(name="modes", scope="module")
def _modes(tmp_path_factory: pytest.TempPathFactory) -> dict[Pace, Group]:
    root = WRITER["unpacked"]("h200x1", tmp_path_factory.mktemp("h200x1"))
    runs = load_tree([*root.rglob("*-batch-*"), *root.rglob("*-phase-split-*")]).runs
    return {group.pace: group for group in grouped(evaluate(runs))}


@pytest.mark.parametrize("pace", [Pace.BATCHES, Pace.PHASES])
def test_the_report_has_what_the_records_say(modes: dict[Pace, Group], pace: Pace) -> None:
    table = mode_table(modes[pace])
    assert table is not None
    report = (ROOT / "docs/results/h200x1/report.md").read_text(encoding="utf-8")

    for row in table.rows:
        assert "| " + " | ".join(cell.text for cell in row) + " |" in report, "run python docs/write_results.py h200x1"


def test_phases_of_a_real_gpu_add_up_to_what_a_request_alone_takes(modes: dict[Pace, Group]) -> None:
    (result,) = modes[Pace.PHASES].results
    found = phase_split(result)
    assert found is not None

    served = result.requests.served
    whole = served[served["requested_output_tokens"] == 64]
    assert found.prefill.time_s.value + found.decode.time_s.value == pytest.approx(whole["e2el"].mean(), rel=0.01)
    # 63 steps of a request alone, each as long as its time per token
    assert found.decode.time_s.value == pytest.approx(63 * whole["tpot"].median(), rel=0.01)
    assert found.decode.power_w is not None
    assert found.decode.power_w.value == pytest.approx(500, abs=found.decode.power_w.error)


def test_the_modes_have_their_figures(modes: dict[Pace, Group]) -> None:
    assert by_batch_size(modes[Pace.BATCHES]) is not None
    assert by_phase(modes[Pace.PHASES]) is not None


def test_the_report_on_two_gpus_has_what_the_records_say(tmp_path: Path) -> None:
    runs = load_tree(list(WRITER["unpacked"]("h200x2", tmp_path).rglob("2048x128-*"))).runs
    table = overview(grouped(evaluate(runs)))
    report = (ROOT / "docs/results/h200x2/report.md").read_text(encoding="utf-8")

    assert {row[1].text for row in table.rows} == {"2 combined", "2 combined adaptive", "disagg 1P1D p2p"}
    assert len(table.rows) == len(runs) == 5
    for row in table.rows:
        assert "| " + " | ".join(cell.text for cell in row) + " |" in report, "run python docs/write_results.py h200x2"


@pytest.mark.parametrize("name", WRITER["TITLES"])
def test_every_figure_of_a_report_is_there_and_none_is_left_over(name: str) -> None:
    folder = WRITER["RESULTS"] / name
    report = (folder / "report.md").read_text(encoding="utf-8")

    figures = {str(path.relative_to(folder)) for path in (folder / "plots").rglob("*.png")}
    assert figures == {part.partition(")")[0] for part in report.split("](")[1:] if part.startswith("plots/")}
