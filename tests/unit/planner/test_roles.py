"""Adaptive roles in a plan: ranked beside fixed ones, drawn, and compared with what was measured."""

import io
import re
import shlex
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.planning import H200, poisson, written_plan

from pd_contracts.names import Connector
from pd_control.cli.options import parser
from pd_planner.calibrate.runs import read
from pd_planner.calibrate.within import checked, comparable
from pd_planner.confidence.draws import adaptive_draws, draw
from pd_planner.confidence.findings import find
from pd_planner.confidence.verdict import roles
from pd_planner.des.limits import Limits
from pd_planner.emit.plan_file import read_plan
from pd_planner.main import main
from pd_planner.profile.trust import Shape, Trust
from pd_planner.report.sentences import doubts, verdict_sentences
from pd_planner.report.tables import choices
from pd_planner.search.candidates import Candidate, EngineLimits
from pd_planner.search.capacity import Setting, attainment
from pd_planner.search.plan import answer
from pd_planner.search.question import Answer, Objective, Question
from pd_planner.search.roles import _split
from pd_planner.traffic.source import Traffic
from pd_simulator.steps.engines import Order

RECORDS = Path(__file__).parents[3] / "docs/results/h200x2/records"
BOTH = Limits({"ttft": 300.0, "tpot": 10.0})


def question(limits: Limits = BOTH, **changes: object) -> Question:
    load = poisson(10, 120, 2048, 128)
    rate = (len(load) - 1) / float(load.at[-1])
    setting = Setting(H200, Traffic(load, rate, None, False, "2,048 → 128"), limits, EngineLimits(400_000))
    asked = Question(setting, [Connector.P2P], Objective.GOODPUT, 2, None, 0.1, None, 2)
    return replace(asked, **changes)  # type: ignore[arg-type]


@pytest.fixture(name="answered", scope="module")
def _answered() -> Answer:
    return answer(question())


def test_adaptive_roles_are_ranked_beside_fixed_ones(answered: Answer) -> None:
    found = answered.adaptive

    assert found is not None
    assert {choice.fleet.label for choice in answered.choices} == {
        "2 plain engines",
        "1P1D P2pConnector",
        "2 adaptive engines",
    }
    assert found.trust is Trust.UNCALIBRATED
    assert not found.plain
    assert answered.fixed == [choice for choice in answered.choices if choice is not found]
    asked, cell = answered.question.setting, found.fleet.candidate
    assert attainment(asked, cell, found.fleet.carries, 30) >= 0.9
    assert attainment(asked, cell, 1.1 * found.fleet.carries, 30) < 0.9
    assert found.operation.joules > 0


def test_where_prompts_slow_answers_down_adaptive_roles_carry_more(answered: Answer) -> None:
    assert answered.adaptive is not None

    assert answered.adaptive.fleet.per_gpu > 1.1 * max(choice.fleet.per_gpu for choice in answered.fixed)


@pytest.mark.parametrize("limits", [{"ttft": 300.0}, {"tpot": 10.0}, {"e2el": 3000.0}])
def test_without_both_limits_there_are_no_adaptive_roles(limits: dict[str, float]) -> None:
    found = answer(question(Limits(limits)))

    assert found.adaptive is None
    assert list(map(str, found.left_out)) == ["adaptive roles, because they need limits of TTFT and TPOT"]


def test_without_p2pconnector_there_are_none() -> None:
    assert answer(question(connectors=[Connector.NIXL])).adaptive is None


@pytest.mark.parametrize(
    ("rate", "room", "split"),
    [
        (None, 8, (1, 8)),
        (None, 12, (2, 6)),
        (None, 17, (3, 5)),
        (90.0, 16, (2, 5)),
        (63.0, 16, (1, 7)),
        (1.0, 16, (1, 2)),
    ],
)
def test_cells_are_as_large_as_the_question_needs(rate: float | None, room: int, split: tuple[int, int]) -> None:
    asked = question(rate=rate, cell=8)

    assert _split(asked, 8, room, 10.0) == split


def test_draws_of_fixed_roles_stay_the_same_beside_adaptive_ones(answered: Answer) -> None:
    setting, fixed, adaptive = answered.question.setting, answered.fixed[0], answered.adaptive
    assert adaptive is not None

    [alone] = draw(setting, [fixed], Objective.GOODPUT, 6)
    beside, roles_of = draw(setting, [fixed, adaptive], Objective.GOODPUT, 6)

    assert beside.per_gpu == alone.per_gpu
    assert len(roles_of.per_gpu) == 5
    assert [adaptive_draws(draws) for draws in (1, 5, 30)] == [1, 5, 10]
    compared = roles([beside, roles_of], answered.question)
    assert compared is not None
    pairs = list(zip(roles_of.per_gpu, beside.per_gpu[:5], strict=True))
    assert compared.draws == 5
    assert compared.ratio == pytest.approx(np.median([ours / theirs for ours, theirs in pairs]))
    assert compared.ahead == sum(ours > theirs for ours, theirs in pairs)


def test_a_plan_says_how_they_compare_and_that_nobody_measured_them() -> None:
    found = find(question(), 3, maps=False)

    told = " ".join(verdict_sentences(found))
    assert "ROUTING=adaptive: 2 adaptive engines came out ahead of" in told
    assert "of 3 draws" in told
    [line] = [line for line in doubts(found, "") if "pdctl compare" in line]
    variables, _, words = line.partition(": ")[2].partition("pdctl compare ")
    assert variables.split() == [
        "KV_BOTH=on",
        "ROUTING=adaptive",
        "TTFT_SLO_MS=300",
        "TPOT_SLO_MS=10",
        "STEP_PROFILE=h200-llama3-8b",
    ]
    asked = parser().parse_args(["compare", *shlex.split(words)])
    assert (asked.gpus, asked.deployments) == ("0,1", "2c")
    assert "2 adaptive engines" in [row[0].text for row in choices(found, 1).rows]  # wherever it ranks


def test_plans_of_the_format_before_have_fixed_roles(tmp_path: Path) -> None:
    path = written_plan(tmp_path, 1, 1, 1, Connector.P2P)
    text = path.read_text().replace('"schema_version":2', '"schema_version":1').replace('"adaptive":false', '"x":0')
    path.write_text(text)

    assert '"schema_version":1' in text
    assert read_plan(path).best.deployment.candidate == Candidate(1, 1, Connector.P2P)


def test_what_was_measured_on_two_h200_is_predicted(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO((RECORDS / "2c-adaptive.tar.xz").read_bytes())) as archive:
        archive.extractall(tmp_path, filter="data")

    unfit, _ = read([tmp_path], kv_tokens=400_000)
    runs, problems = read([tmp_path], kv_tokens=400_000, adaptive=True)

    assert (unfit, problems) == ([], [])
    assert [run.engines.order for run in runs] == [Order.HAND_OFF] * 2
    assert {run.label for run in runs} == {"2 combined adaptive"}
    assert comparable(runs, {(False, Shape(0, 4, Connector.P2P, adaptive=True))}) == runs
    found = checked(H200, runs)
    off = {(each.run.sizes, each.metric): each.simulated / each.measured - 1 for each in found}
    assert all(each.inside for each in found)
    assert abs(off["2,048 → 128", "TPOT p50"]) < 0.05
    assert abs(off["2,048 → 128", "J/token"]) < 0.05
    assert abs(off["512 → 64", "TPOT p50"]) < 0.05
    assert comparable(runs, {(True, Shape(0, 4, None))}) == []  # adaptive runs do not check a plan of plain engines


def test_a_check_says_which_runs_are_adaptive_and_whether_the_plan_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    runs = tmp_path / "runs"
    with tarfile.open(fileobj=io.BytesIO((RECORDS / "2c-adaptive.tar.xz").read_bytes())) as archive:
        archive.extractall(runs, filter="data")

    assert main(["check", str(written_plan(tmp_path, 0, 2, connector=Connector.P2P, adaptive=True)), str(runs)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"2 combined (?!adaptive)", told) == []
    assert "8 of 8 values inside their bands; 2 of 2 runs with all of theirs" in told
    assert main(["check", str(written_plan(tmp_path, 0, 2)), str(runs)]) == 2
    told = capsys.readouterr().err
    assert told.count("left out: the plan has no such deployment (2 combined adaptive)") == 2
    assert told.splitlines()[-1] == "pd-plan: none of 2 usable runs is of a deployment of this plan"
