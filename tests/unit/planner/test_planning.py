"""From a question to a plan: options, answers, their certainty, and the files that are written."""

import argparse
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console
from support.planning import H200, poisson, write_run

from pd_analysis.plots import svg
from pd_analysis.tables.table import table
from pd_analysis.words.language import Sentence
from pd_contracts.names import Connector, Role
from pd_contracts.settings import fields
from pd_control.cli.options import parser
from pd_loadgen.workload.options import Options
from pd_planner import cores
from pd_planner.cli import traffic as traffic_options
from pd_planner.confidence import findings
from pd_planner.confidence.draws import Drawn
from pd_planner.confidence.findings import Findings, find, settled
from pd_planner.confidence.verdict import Outcome, compared, values, verdict
from pd_planner.des.limits import Limits
from pd_planner.emit.measurement import command
from pd_planner.emit.plan_file import PlanFile, read_plan
from pd_planner.main import main
from pd_planner.profile.analytic import analytic
from pd_planner.profile.datasheets import board_of
from pd_planner.profile.numbers import changed
from pd_planner.profile.shape import read_shape
from pd_planner.profile.trust import Trust
from pd_planner.report import terminal
from pd_planner.report.pareto import _together
from pd_planner.report.sentences import doubts, verdict_sentences
from pd_planner.search import breakeven
from pd_planner.search.candidates import Candidate, EngineLimits, candidates
from pd_planner.search.capacity import Care, Setting, attainment, capacity, run, upper_bound
from pd_planner.search.fleet import Fleet, Operation, fitting, needed
from pd_planner.search.no_plan import NoPlanError
from pd_planner.search.plan import answer
from pd_planner.search.question import Answer, Choice, Objective, Question
from pd_planner.traffic import source
from pd_planner.traffic.load import Load
from pd_planner.traffic.prefix import cached_tokens
from pd_planner.traffic.source import Traffic
from pd_simulator.steps.engines import Engines

LIMITS = Limits({"ttft": 500.0, "tpot": 15.0})
ENGINE = EngineLimits(H200.memory.kv_tokens)
PLAIN, NIXL = Candidate(0, 2), Candidate(1, 1, Connector.NIXL)


def setting(prompt: int = 2048, output: int = 128, limits: Limits = LIMITS) -> Setting:
    load = poisson(10, 200, prompt, output)
    rate = (len(load) - 1) / float(load.at[-1])
    return Setting(H200, Traffic(load, rate, None, False, f"{prompt} → {output}"), limits, ENGINE)


def question(**changes: object) -> Question:
    asked = Question(setting(), [Connector.NIXL], Objective.GPUS, None, 30.0, 0.1, None, 2)
    return replace(asked, **changes)  # type: ignore[arg-type]


MOST = question(objective=Objective.GOODPUT, rate=None, gpus=8)


def drawn(
    candidate: Candidate, per_gpu: Sequence[float], cells: int = 1, trust: Trust = Trust.CALIBRATED, **changes: object
) -> Drawn:
    latencies = {"ttft_p99": 1.0, "tpot_p50": 1.0}
    operation = Operation(1.0, 1.0, latencies, {Role.COMBINED: 1.0}, 1.0)
    choice = Choice(Fleet(candidate, cells, 1.0), operation, trust, 0.22)
    return Drawn(replace(choice, **changes), tuple(per_gpu), ())  # type: ignore[arg-type]


@pytest.mark.parametrize("candidate", [PLAIN, NIXL, Candidate(3, 1, Connector.P2P_NCCL)])
def test_capacity_is_the_highest_rate_within_the_limits(candidate: Candidate) -> None:
    asked = setting()

    carried = capacity(asked, candidate)

    assert attainment(asked, candidate, carried) >= LIMITS.attainment
    assert attainment(asked, candidate, carried * 1.05) < LIMITS.attainment
    assert capacity(asked, candidate, carried * 0.6) == pytest.approx(carried, rel=0.03)


def test_a_load_that_is_served_at_once_at_any_rate_is_carried_no_faster_than_engines_compute() -> None:
    few = poisson(20.0, 5.0, 1, 2)
    asked = replace(
        setting(limits=Limits({"ttft": 5000.0, "tpot": 1000.0})), traffic=Traffic(few, 20.0, None, False, "few")
    )

    assert attainment(asked, PLAIN, 1e9) == 1.0
    assert capacity(asked, PLAIN) == pytest.approx(upper_bound(asked, PLAIN))


@pytest.mark.parametrize(("carried", "ratio"), [([1.0, 2.0, 3.0, 9.0], 2.5), ([1.0, 3.0, 9.0], 3.0)])
def test_the_ratio_is_the_median_of_the_draws(carried: list[float], ratio: float) -> None:
    one, other = drawn(NIXL, carried), drawn(PLAIN, [1.0] * len(carried))

    assert compared(one, other, question(objective=Objective.GOODPUT, rate=None)).ratio == ratio


def test_tighter_limits_never_carry_more() -> None:
    carried = [
        capacity(setting(limits=Limits({"ttft": ttft, "tpot": 15.0})), NIXL) for ttft in (30.0, 100.0, 300.0, 900.0)
    ]

    assert carried == sorted(carried)
    assert carried[0] == 0


@pytest.mark.parametrize("candidate", [Candidate(0, 4), Candidate(1, 3, Connector.NIXL)])
def test_a_capacity_is_that_of_full_batches_however_long_answers_are(candidate: Candidate) -> None:
    asked = setting(128, 1024)
    long = replace(asked, traffic=replace(asked.traffic, load=poisson(10, 1200, 128, 1024)))

    carried = capacity(long, candidate, care=Care(5.0, 0.02))

    # Answers stay 15 s at most, and in 300 s that no longer matters.
    assert carried == pytest.approx(capacity(long, candidate, carried, Care(300.0, 0.02)), rel=0.08)


def test_the_break_even_map_holds_for_answers_that_outlast_a_short_load() -> None:
    long = replace(setting(), traffic=replace(setting().traffic, load=poisson(10, 1200, 128, 1024)))

    point = breakeven._point(long, Candidate(2, 2, Connector.NIXL), 128, 1024)

    assert point.split is not None
    assert point.split.shape == "1P3D"
    assert 0.7 < point.ratio < 1.3  # three of four engines decode, and prompts cost next to nothing


def test_a_fleet_keeps_its_headroom_and_fits_its_budget() -> None:
    fleet = needed(NIXL, 14.0, 100.0, 0.1)

    assert fleet is not None
    assert (fleet.cells, fleet.gpus) == (8, 16)
    assert fleet.capacity * 0.9 >= 100 > (fleet.cells - 1) * 14 * 0.9
    assert needed(NIXL, 0.0, 100.0, 0.1) is None
    assert fitting(NIXL, 14.0, 1) is None
    held = fitting(NIXL, 14.0, 7)
    assert held is not None
    assert held.gpus == 6


def test_every_deployment_of_a_cell_is_tried_once() -> None:
    found = list(candidates(4, [Connector.NIXL, Connector.P2P_NCCL]))

    assert len(found) == len(set(found)) == 1 + 2 * 6
    assert {each.shape for each in found} == {"4 plain engines", "1P1D", "1P2D", "2P1D", "1P3D", "2P2D", "3P1D"}


def test_what_vllm_no_longer_has_is_planned_only_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input-tokens", "2048", "--output-tokens", "128", "--gpus", "2", "--cell", "2", "--draws", "2"]

    assert main(words) == 0
    assert "P2P NCCL" not in capsys.readouterr().out
    assert main([*words, "--connectors", "nixl,p2pnccl"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "1P1D P2P NCCL" in told


def test_a_profile_with_p2p_nccl_alone_says_how_it_is_planned_with() -> None:
    nccl = msgspec.structs.replace(H200, handoff={Connector.P2P_NCCL: H200.handoff[Connector.P2P_NCCL]})
    asked = question(connectors=[], setting=replace(setting(), profile=nccl))

    [reason] = map(str, answer(asked).left_out)

    assert "--connectors p2pnccl plans with it" in reason
    assert answer(replace(asked, connectors=[Connector.P2P_NCCL])).left_out == []


def test_an_answer_does_not_depend_on_how_many_cores_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(connectors=[Connector.P2P, Connector.NIXL], cell=3)

    def found(cores_used: int) -> Findings:
        monkeypatch.setattr(cores, "cores", lambda: cores_used)
        return find(asked, 4, maps=False)

    alone, shared = found(1), found(3)

    assert verdict_sentences(alone) == verdict_sentences(shared)
    assert [choice.operation for choice in alone.answer.choices] == [c.operation for c in shared.answer.choices]
    assert [each.per_gpu for each in alone.drawn] == [each.per_gpu for each in shared.drawn]


def test_no_label_of_the_front_lies_on_another_point() -> None:
    def point(gpus: int, joules: float) -> Choice:
        choice = drawn(Candidate(0, gpus), [1.0]).choice
        return replace(choice, operation=replace(choice.operation, joules=joules))

    # The second and the third are nearly equal, on two sides of a line of any grid.
    front = [point(6, 0.484), point(6, 0.499), point(6, 0.517), point(6, 0.9), point(8, 0.5)]

    assert list(_together(front, 1.0)) == [([1, 2, 3], (6, 0.484)), ([4], (6, 0.9)), ([5], (8, 0.5))]


def test_the_answer_is_ranked_by_what_is_wanted() -> None:
    for objective in Objective:
        found = answer(question(objective=objective))
        key = {
            Objective.GPUS: lambda choice: choice.fleet.gpus,
            Objective.GOODPUT: lambda choice: -choice.fleet.per_gpu,
            Objective.ENERGY: lambda choice: choice.operation.joules,
        }[objective]
        able = [choice for choice in found.choices if not choice.refusal and choice.trust is Trust.CALIBRATED]
        assert able, objective
        assert able == sorted(able, key=key), objective
        assert all(choice.fleet.capacity * 0.9 >= 30 for choice in able)


def choice(gpus: int, joules: float, ttft_p99: float, *, able: bool = True) -> Choice:
    operation = Operation(1.0, 1.0, {"ttft_p99": ttft_p99}, {Role.COMBINED: 1.0}, joules)
    refusal = None if able else Sentence("needs {gpus} GPUs", gpus=gpus)
    return Choice(Fleet(Candidate(0, gpus), 1, 1.0), operation, Trust.CALIBRATED, 0.1, refusal)


def test_the_front_has_what_no_other_choice_beats_in_everything() -> None:
    small, frugal, quick = choice(2, 3.0, 300.0), choice(4, 1.0, 300.0), choice(4, 3.0, 100.0)
    beaten = [choice(2, 3.0, 301.0), choice(5, 1.0, 300.0), choice(4, 1.1, 300.0)]
    refused = choice(1, 0.1, 1.0, able=False)

    found = Answer(question(), [beaten[0], small, refused, *beaten[1:], frugal, quick])

    assert found.front == [small, frugal, quick]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans()), min_size=1))
def test_whatever_is_not_on_the_front_is_beaten_by_something_on_it(points: list[tuple[int, int, int, bool]]) -> None:
    choices = [choice(gpus, joules, ttft, able=able) for gpus, joules, ttft, able in points]

    front = Answer(question(), choices).front

    numbers = [(c.fleet.gpus, c.operation.joules, c.operation.latencies["ttft_p99"]) for c in front]
    for (*point, able), each in zip(points, choices, strict=True):
        beaten = any(all(a <= b for a, b in zip(n, point, strict=True)) and n != tuple(point) for n in numbers)
        assert (each in front) == (able and not beaten)
        assert not able or each in front or beaten


def test_nothing_draws_more_than_the_cap() -> None:
    free = answer(question())
    watts = sorted(choice.operation.total_watts for choice in free.choices)

    capped = answer(question(power_cap_w=(watts[0] + watts[1]) / 2))

    assert capped.best.operation.total_watts == pytest.approx(watts[0])
    assert all("W" in str(choice.refusal) for choice in capped.choices[1:])
    with pytest.raises(NoPlanError, match=r"with 100 W in all cannot serve 30 requests/s: .* \(draws "):
        answer(question(power_cap_w=100.0))


def test_limits_that_nothing_meets_are_told_with_what_is_possible() -> None:
    with pytest.raises(
        NoPlanError,
        match=r"not even without load: TTFT is \d+\.\d ms at least, and the limit is 5; --goodput sets other limits$",
    ):
        answer(question(setting=setting(limits=Limits({"ttft": 5.0}))))


def test_a_request_that_fits_no_engine_is_told() -> None:
    small = replace(setting(), engine=EngineLimits(2000))
    with pytest.raises(NoPlanError, match=r"2048 \+ 128 tokens do not fit into the KV cache of 2000 tokens"):
        answer(question(setting=small))


@pytest.mark.parametrize(
    ("apart", "outcome", "ahead"),
    [
        ([2.0] * 10, Outcome.APART, 10),
        ([2.0] * 9 + [0.5], Outcome.APART, 9),
        ([2.0] * 8 + [0.5] * 2, Outcome.UNCLEAR, 8),
        ([0.5] * 10, Outcome.PLAIN, 0),
        ([1.0] * 10, Outcome.EQUAL, 0),
    ],
)
def test_a_verdict_needs_nine_of_ten_draws(apart: list[float], outcome: Outcome, ahead: int) -> None:
    judged = verdict([drawn(NIXL, apart), drawn(PLAIN, [1.0] * 10)], MOST)

    assert judged.compared is not None
    assert (judged.outcome, judged.compared.ahead, judged.compared.draws) == (outcome, ahead, 10)


def test_without_a_rival_there_is_no_comparison() -> None:
    assert verdict([drawn(PLAIN, [1.0])], MOST).outcome is Outcome.ALONE


def test_on_a_budget_gpus_that_stay_unused_count() -> None:
    # Of five GPUs 3P1D has four: more per GPU, and less in all.
    plain, apart = drawn(Candidate(0, 1), [10.0] * 3, cells=5), drawn(Candidate(3, 1, Connector.NIXL), [12.0] * 3)

    assert values(apart, MOST) == [48.0] * 3
    assert settled([apart, plain], MOST) == [plain, apart]
    assert verdict([plain, apart], MOST).outcome is Outcome.PLAIN
    any_number = replace(MOST, gpus=None, rate=30.0)
    assert settled([plain, apart], any_number) == [apart, plain]


def test_the_fewest_gpus_are_counted_in_each_draw() -> None:
    asked = question(rate=30.0)
    apart = drawn(Candidate(2, 1, Connector.NIXL), [12.0, 11.0, 12.0])

    assert values(apart, asked) == [3, 6, 3]
    found = verdict([drawn(Candidate(0, 1), [12.0, 9.0, 8.0]), apart], asked)
    assert found.compared is not None
    assert (found.compared.ahead, found.compared.equal, found.compared.behind) == (1, 1, 1)
    assert found.outcome is Outcome.UNCLEAR


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Candidate(0, 1), NIXL, Candidate(2, 1, Connector.P2P), Candidate(3, 1, Connector.P2P)]),
            st.lists(st.sampled_from([5.0, 6.0, 8.0, 10.0]), min_size=4, max_size=4),
            st.sampled_from([Trust.CALIBRATED, Trust.UNCALIBRATED]),
            st.booleans(),
        ),
        min_size=1,
        unique_by=lambda each: each[0],
    ),
    st.booleans(),
)
def test_no_verdict_contradicts_its_answer(
    given_draws: list[tuple[Candidate, list[float], Trust, bool]], any_topology: bool
) -> None:
    asked = replace(MOST, any_topology=any_topology)
    each = [
        drawn(candidate, per_gpu, trust=trust, refusal=None if able else Sentence("needs {gpus} GPUs", gpus=9))
        for candidate, per_gpu, trust, able in given_draws
    ]
    ranked = settled(sorted(each, key=lambda one: bool(one.choice.refusal)), asked)
    found = Findings(asked, Answer(asked, [one.choice for one in ranked]), ranked, verdict(ranked, asked))

    told = verdict_sentences(found)

    assert sorted(map(id, ranked)) == sorted(map(id, each))
    judged = found.verdict.compared
    if judged is None:
        return
    rival = judged.one if judged.other is found.best else judged.other
    ahead = judged.ahead if rival is judged.one else judged.behind
    behind = judged.behind if rival is judged.one else judged.ahead
    # What is ahead of the answer in most draws has its reason.
    assert (ahead > behind) == any(
        sentence.startswith("The answer is not " + rival.choice.fleet.label) for sentence in told
    )
    if ahead > behind:
        assert rival.choice.refusal or (rival.choice.trust is Trust.UNCALIBRATED and not any_topology)


def test_the_size_of_the_answer_is_that_of_the_median_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_as_fast(asked: Setting, choices: Sequence[Choice], objective: Objective, draws: int) -> list[Drawn]:
        return [Drawn(each, (each.fleet.per_gpu / 2,) * draws, (each.operation.joules,) * draws) for each in choices]

    monkeypatch.setattr(findings, "draw", half_as_fast)
    asked = question(rate=30.0)

    found, central = find(asked, 3, maps=False), answer(asked)

    assert central.best.fleet.gpus < found.best.choice.fleet.gpus
    assert found.best.choice.fleet.capacity * 0.9 >= 30
    assert found.answer.best is found.best.choice
    with pytest.raises(NoPlanError, match=r"cannot serve 30 requests/s: .*the fewest are"):
        find(replace(asked, gpus=central.best.fleet.gpus), 3, maps=False)


def test_goodput_on_a_budget_takes_all_of_it_and_carries_the_rate() -> None:
    found = answer(question(objective=Objective.GOODPUT, rate=30.0, gpus=5))

    able = [choice for choice in found.choices if not choice.refusal]
    assert {choice.fleet.gpus for choice in able} <= {4, 5}
    assert all(choice.fleet.capacity * 0.9 >= 30 for choice in able)
    assert all(
        str(choice.refusal) == f"needs {choice.fleet.gpus} GPUs" for choice in found.choices if choice.fleet.gpus > 5
    )


def test_the_answer_says_of_how_many_gpus_it_has_some() -> None:
    apart = drawn(Candidate(3, 1, Connector.NIXL), [12.0] * 3)
    asked = replace(MOST, gpus=5)
    found = Findings(asked, Answer(asked, [apart.choice]), [apart], verdict([apart], asked))

    assert verdict_sentences(found)[0].startswith("The highest capacity on 4 of 5 GPUs within")


def test_draws_that_do_not_carry_the_rate_are_told() -> None:
    asked = question(rate=30.0)
    plain = drawn(Candidate(0, 1), [9.0, 11.0, 7.0, 7.4], cells=4)
    found = Findings(asked, Answer(asked, [plain.choice]), [plain], verdict([plain], asked))

    [told] = [each for each in doubts(found, "") if "draws" in each]
    assert told.startswith("In 2 of 4 draws 30.0 requests/s are too many for 4 plain engines")


def test_what_decides_is_a_command_that_pdctl_takes() -> None:
    judged = verdict([drawn(Candidate(2, 1, Connector.NIXL), [2.0]), drawn(PLAIN, [1.0])], MOST)

    words = shlex.split(command(setting(), judged.compared))

    assert words[0] == "pdctl"
    options = parser().parse_args(words[1:])
    assert (options.command, options.deployments, options.gpus) == ("compare", "3c,2p1d:nixl", "0,1,2")
    assert options.goodput == "ttft:500 tpot:15"


def test_what_decides_a_trace_is_the_trace_at_that_pace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(f'{{"timestamp": {100 * n}, "input_length": 900, "output_length": 40}}\n' for n in range(50))
    )
    asked = replace(setting(), traffic=_traffic(["--trace", str(trace), "--speed", "2"]), prefix_caching=True)
    judged = verdict([drawn(Candidate(2, 1, Connector.NIXL), [2.0]), drawn(PLAIN, [2.0])], MOST)

    words = shlex.split(command(asked, judged.compared))

    # 2 requests/s per GPU on three GPUs are six; the trace has ten by itself.
    assert words[-3:] == ["--", "--time-scale", "1.67"]
    assert words[0] == "PREFIX_CACHING=on"
    assert parser().parse_args(words[2:-3]).trace == str(trace)


def test_a_capacity_for_a_trace_is_of_all_of_it() -> None:
    # Two thirds come slowly, and then three times as many a second.
    at = np.cumsum([0.3] * 2000 + [0.1] * 1000)
    whole = Traffic(Load.of(at - at[0], 1024, 64), 2999 / (at[-1] - at[0]), None, True, "trace")
    slow = replace(whole, load=whole.load.first(2000), rate=1 / 0.3)

    carried, calm = (capacity(replace(setting(), traffic=each), PLAIN) for each in (whole, slow))

    assert carried < 0.7 * calm
    assert len(whole.at(10.0, 1.0)) == 3000


def test_of_a_long_trace_the_busiest_part_stands_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "MOST", 20)
    trace, times = (
        tmp_path / "trace.jsonl",
        [*range(0, 40_000, 1000), *range(40_000, 45_000, 200), *range(45_000, 65_000, 1000)],
    )
    trace.write_text("".join(f'{{"timestamp": {at}, "input_length": 9, "output_length": 4}}\n' for at in times))

    found = _traffic(["--trace", str(trace)])

    assert len(found.load) == 20
    assert found.rate == pytest.approx(5.0)
    assert any(
        "Of 85 requests of the trace the 20 in a row that came fastest stand for all" in str(note)
        for note in found.notes
    )


@pytest.mark.parametrize(("count", "told"), [(60, True), (3000, False)])
def test_a_trace_that_is_over_before_its_answers_are_shows_no_lasting_rate(
    count: int, told: bool, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = (f'{{"timestamp": {200 * n}, "input_length": 2048, "output_length": 128}}\n' for n in range(count))
    trace.write_text("".join(lines))
    asked = question(rate=5.0)
    asked = replace(asked, setting=replace(asked.setting, traffic=_traffic(["--trace", str(trace)])))
    plain = drawn(PLAIN, [12.0])
    calm = replace(plain.choice.operation, latencies={"ttft_p50": 60.0, "tpot_p50": 8.0})
    plain = replace(plain, choice=replace(plain.choice, operation=calm))
    found = Findings(asked, Answer(asked, [plain.choice]), [plain], verdict([plain], asked))

    assert any(f"all {count} requests come within" in sentence for sentence in doubts(found, "")) is told


def test_an_engine_of_two_boards_is_faster_but_less_than_twice() -> None:
    board = board_of("H200")
    assert board is not None
    shape = read_shape("llama-3.1-70b")

    two, four = analytic(shape, board, 2), analytic(shape, board, 4)

    assert 1.9 < (two.decode.base_ms - 1) / (four.decode.base_ms - 1) < 2.1
    assert four.memory.kv_tokens > 2 * two.memory.kv_tokens
    assert four.power == two.power


def test_energy_is_measured_at_the_rate_that_was_asked_for() -> None:
    two = [replace(drawn(each, [9.0]), joules=(1.0,)) for each in (NIXL, PLAIN)]

    words = shlex.split(command(setting(), verdict(two, question(objective=Objective.ENERGY)).compared))

    assert words[words.index("--rates") + 1] == "0.5"  # one request/s on two GPUs


def test_prefixes_hit_where_the_same_engine_had_them() -> None:
    load = Load.of([0.0, 1.0, 2.0, 3.0], 100, 5)
    shared = [(("a", 64), (f"own {n}", 36)) for n in range(4)]

    hits = cached_tokens(load, shared, np.array([0, 1, 0, 1]), 10_000)
    forgotten = cached_tokens(load, shared, np.array([0, 0, 0, 0]), 50)

    assert hits.tolist() == [0, 0, 64, 64]
    assert forgotten.tolist() == [0, 0, 0, 0]


def test_prefix_caching_carries_more_where_prompts_begin_alike() -> None:
    plain = setting()
    shared = [(("system", 1536), (f"own {n}", 512)) for n in range(len(plain.traffic.load))]
    alike = replace(plain, traffic=replace(plain.traffic, shared=shared))

    assert capacity(replace(alike, prefix_caching=True), PLAIN) > 1.3 * capacity(alike, PLAIN)


def test_a_cache_lifts_the_bound_on_what_a_cell_can_do() -> None:
    plain = setting(4096, 16, Limits({"ttft": 2000.0, "tpot": 50.0}))
    shared = [(("system", 4080), (f"own {n}", 16)) for n in range(len(plain.traffic.load))]
    alike = replace(plain, traffic=replace(plain.traffic, shared=shared), prefix_caching=True)

    assert capacity(alike, PLAIN) > 3 * upper_bound(plain, PLAIN)


@pytest.mark.parametrize("prompt", [1, 16, 64, 512])
def test_no_load_is_served_faster_than_the_bound(prompt: int) -> None:
    busy = setting(prompt, 16)

    for candidate in (PLAIN, NIXL):
        bound = upper_bound(busy, candidate)
        outcome = run(busy, candidate, 5 * bound)
        assert len(outcome.first) / float(outcome.last.max()) < bound


@dataclass(frozen=True)
class Written:
    """What a question wrote, and its figures."""

    folder: Path
    figures: dict[str, Figure]


@pytest.fixture(scope="module", name="written")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    found = Written(tmp_path_factory.mktemp("plan"), {})
    save = svg.save

    def kept(figure: Figure, path: Path) -> str:
        found.figures[path.name] = figure
        return save(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(breakeven, "PROMPTS", (512, 2048))
        patch.setattr(breakeven, "OUTPUTS", (32, 128))
        patch.setattr(breakeven, "RATES", (0.5, 0.9))
        patch.setattr(svg, "save", kept)
        words = "--input-tokens 2048 --output-tokens 128 --rate 30 --goodput ttft:500 tpot:15 e2el:10000 --cell 2 --draws 5 --quiet"
        assert main([*words.split(), "--out", str(found.folder)]) == 0
    return found


@pytest.fixture(scope="module", name="folder")
def _folder(written: Written) -> Path:
    return written.folder


def test_no_text_of_a_figure_is_cut_off(written: Written) -> None:
    assert {"capacity", "break_even", "rates"} <= set(written.figures)
    for name in {"capacity", "rates", "pareto"} & set(written.figures):  # colours without a key say nothing
        assert written.figures[name].legends, name

    for name, figure in written.figures.items():
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        for text in _texts(figure):
            box = text.get_window_extent(renderer)
            assert -1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, (name, text.get_text())


def _texts(figure: Figure) -> list[Text]:
    """Everything that is written but ticks, of which some lie outside the axes and are not drawn."""
    inside = [text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]
    return [text for text in (*figure.texts, *inside) if text.get_text()]


@pytest.fixture(scope="module", name="plan")
def _plan(folder: Path) -> PlanFile:
    return read_plan(folder / "plan.json")


def test_a_plan_says_what_was_asked_and_that_it_is_simulated(plan: PlanFile) -> None:
    assert plan.simulated
    assert plan.profile == H200
    assert (plan.rate, plan.goodput, plan.attainment) == (30.0, {"ttft": 500.0, "tpot": 15.0, "e2el": 10000.0}, 0.9)
    low, middle, high = plan.best.capacity_per_gpu
    assert 0 < low <= middle <= high
    assert plan.best.deployment.gpus * middle > 30


@pytest.mark.parametrize("name", ["plan.html", "plan.md"])
def test_pages_say_simulated_and_how_well_the_profile_was_held_out(folder: Path, plan: PlanFile, name: str) -> None:
    text = (folder / name).read_text()

    assert "SIMULATED" in text
    assert re.search(r"Held-out error of the profile.*capacity \d+%", text)
    assert plan.best.deployment.label in text
    assert "Break" not in text or "÷ plain" in text
    for link in re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        assert link.startswith(("#", "data:")), link
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (folder / picture).is_file()


@pytest.mark.parametrize("name", ["plan.html", "plan.md"])
def test_lengths_have_separators_of_thousands_as_all_other_numbers(folder: Path, name: str) -> None:
    assert "Plan for 2,048 → 128 tokens" in (folder / name).read_text()


def test_a_figure_that_is_wider_than_the_window_scrolls_in_its_own_frame(folder: Path) -> None:
    figures = re.findall(r'<figure class="plot">.*?<svg', (folder / "plan.html").read_text(), flags=re.DOTALL)

    assert len(figures) >= 3
    assert all('class="scroll"' in figure for figure in figures)


def test_the_page_says_where_there_is_more_than_the_window_shows_and_breaks_no_option(folder: Path) -> None:
    text = (folder / "plan.html").read_text()

    assert "dataset.hint = WORDS.hint" in text
    assert json.loads(re.findall(r"const WORDS = (.*);", text)[0])["hint"].startswith("swipe for more")
    told = re.findall(r'<li class="care">.*</li>|<p class="lead">.*</p>', text)
    assert told
    assert [
        each for each in told if re.search(r"(?<![\w/-])--[a-z]", re.sub(r'<span class="whole">.*?</span>', "", each))
    ] == []
    assert re.search(r'<p class="lede">[A-Z0-9]', text)


def test_variables_and_values_are_those_of_the_plan(folder: Path, plan: PlanFile) -> None:
    lines = (folder / ".env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    values = yaml.safe_load((folder / "values.yaml").read_text())

    deployment = plan.best.deployment
    if deployment.prefills:
        assert len(variables["PREFILL_GPUS"].split(",")) == deployment.prefills
        assert values["prefill"]["count"] == deployment.prefills
        assert variables["KV_CONNECTOR"] == values["engine"]["kvConnector"] == deployment.connector
    else:
        assert len(variables["COMBINED_GPUS"].split(",")) == deployment.gpus == values["combined"]["count"]
    assert variables["MAX_NUM_SEQS"] == str(values["engine"]["maxNumSeqs"]) == "256"


def test_what_was_measured_is_inside_or_outside(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = Engines(1, 1, Connector.NIXL, H200.memory.kv_tokens)
    write_run(tmp_path / "same" / "run", H200, engines, poisson(6, 30, 2048, 128), "1P1D NIXL")
    slow = changed(H200, {"decode.base_ms": 9.0, "prefill.per_token_ms": 0.04})
    write_run(tmp_path / "slow" / "run", slow, engines, poisson(6, 30, 2048, 128), "1P1D NIXL")

    assert main(["check", str(folder / "plan.json"), str(tmp_path / "same")]) == 0
    assert "5 of 5 values inside their bands; 1 of 1 runs with all of theirs" in capsys.readouterr().out
    assert main(["check", str(folder / "plan.json"), str(tmp_path / "slow")]) == 1
    assert "OUTSIDE" in capsys.readouterr().out
    assert main(["check", str(folder / "plan.json"), str(tmp_path / "none")]) == 2


def test_a_trace_is_planned_with_its_own_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 250 * n, "input_length": 900 + n, "output_length": 40, "hash_ids": [n, n + 1]} for n in range(50)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = _traffic(["--trace", str(trace), "--speed", "2"])

    assert found.recorded
    assert found.rate == pytest.approx(8.0)
    assert found.load.prompt[:3].tolist() == [900, 901, 902]


def test_the_help_says_how_the_speed_of_a_trace_is_written_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    parser = argparse.ArgumentParser()
    traffic_options.add_arguments(parser)
    run = {field.name: field.description for field in fields(Options)}

    assert "like --time-scale 0.5 of pd-loadgen" in " ".join(parser.format_help().split())
    assert run["time_scale"].endswith("like --speed 2 of pd-plan")


def test_requests_that_vllm_refuses_are_counted_and_left_out(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    sizes = [900, 4000, 900, 7990] * 10
    lines = (
        f'{{"timestamp": {250 * n}, "input_length": {size}, "output_length": 11}}\n' for n, size in enumerate(sizes)
    )
    trace.write_text("".join(lines))

    found = _traffic(["--trace", str(trace)], longest=8000)

    assert sorted(set(found.load.prompt.tolist())) == [900, 4000]
    assert found.rate == pytest.approx(29 / 9.5)
    [told] = map(str, found.notes)
    assert told.startswith("10 of 40 requests have more than 8,000 tokens, prompt and answer together (up to 8,001)")
    assert _traffic(["--trace", str(trace)], longest=8001).notes == []


def test_the_longest_request_is_the_models_the_callers_or_the_caches() -> None:
    assert H200.max_model_len == 131_072
    assert EngineLimits(200_000).longest(131_072) == 131_072
    assert EngineLimits(200_000, max_model_len=4096).longest(131_072) == 4096
    assert EngineLimits(50_000).longest(131_072) == EngineLimits(50_000).longest(0) == 50_000


CONFIG: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 512,
}


@pytest.mark.parametrize(
    ("own", "longest"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({}, 0),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 40960, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 81920),
    ],
)
def test_the_longest_request_of_a_model_is_in_its_config(own: dict[str, object], longest: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | own))

    assert read_shape(str(tmp_path)).max_model_len == longest


def test_keys_that_a_config_leaves_out_are_the_defaults_of_its_class(tmp_path: Path) -> None:
    """As the config.json of google/gemma-3-4b-it does."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))

    shape = read_shape(str(tmp_path))

    assert shape.kv_bytes == 2 * 2 * 34 * 4 * 256
    assert shape.weights_bytes == pytest.approx(2 * 3.88e9, rel=0.01)
    assert (shape.max_model_len, shape.window_tokens) == (131_072, 1024)


MISTRAL = {"num_hidden_layers": 32, "model_type": "mistral", "sliding_window": 4096}
GEMMA = {"num_hidden_layers": 26, "model_type": "gemma3_text", "sliding_window": 512}
GPT_OSS = {
    "num_hidden_layers": 24,
    "model_type": "gpt_oss",
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}
QWEN = {"num_hidden_layers": 28, "model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False}
EXAONE = {"num_hidden_layers": 64, "model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"}


@pytest.mark.parametrize(
    ("own", "windowed", "tokens"),
    [
        (MISTRAL, 32, 4096),
        (GEMMA | {"sliding_window_pattern": 6}, 22, 512),
        (GEMMA, 22, 512),
        (GPT_OSS, 12, 128),
        (EXAONE, 48, 4096),
        (QWEN, 0, 0),
        (MISTRAL | {"sliding_window": None}, 0, 0),  # as of version 0.2
    ],
)
def test_layers_with_a_sliding_window_are_counted_as_the_config_has_them(
    own: dict[str, object], windowed: int, tokens: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | own))

    shape = read_shape(str(tmp_path))

    assert shape.window_share * shape.layers == pytest.approx(windowed)
    assert shape.window_tokens == tokens


@pytest.mark.parametrize(("prompt", "told"), [(4000, False), (4090, True)])
def test_a_plan_of_a_model_with_a_sliding_window_says_that_it_is_not_simulated(
    prompt: int, told: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | MISTRAL))
    board = board_of("H200")
    assert board is not None
    asked = question(rate=30.0)
    load = Load.of([0.0, 1.0], [100, prompt], [10, 10])
    setting = replace(
        asked.setting,
        profile=analytic(read_shape(str(tmp_path)), board),
        traffic=replace(asked.setting.traffic, load=load),
    )
    asked, plain = replace(asked, setting=setting), drawn(PLAIN, [9.0])
    found = Findings(asked, Answer(asked, [plain.choice]), [plain], verdict([plain], asked))

    sentences = [each for each in doubts(found, "") if "sliding window" in each]

    assert [each.partition(" (")[0] for each in sentences] == [
        "100% of this model's layers look back on 4,096 tokens only"
    ] * told


def _traffic(words: list[str], longest: int = 10**9) -> Traffic:
    options = argparse.ArgumentParser()
    traffic_options.add_arguments(options)
    return traffic_options.chosen(options.parse_args(words), longest)


def test_a_name_in_a_narrow_terminal_is_not_cut_within_a_word() -> None:
    header = ("deployment", "GPUs", "carries, req/s per GPU", "TTFT p99", "TPOT p99", "J/output token", "rests on")
    row = ["341 × 2P1D P2pConnector", "1,023", "1,011.8 (910.7–1,220.0)", "2,262", "10.5", "0.510", "UNCALIBRATED"]
    console = Console(width=80, record=True, file=io.StringIO())

    console.print(terminal.rich_table(table("", header, [row], {0, 6}), 80))

    assert "P2pConnector" in console.export_text()


def test_a_narrow_table_loses_no_letter() -> None:
    header = ("deployment", "tokens", "req/s per GPU", "metric", "measured", "SIMULATED", "difference", "")
    row = ["2 combined", "2,048 → 128", "8.00", "J/token", "0.566", "0.557", "-1.7% (±40%)", "OUTSIDE"]
    console = Console(width=80, record=True, file=io.StringIO())

    console.print(terminal.rich_table(table("", header, [row], {0, 1, 3, 7}), 80))

    written = console.export_text().split()
    assert {word for text in (*header, *row) for word in text.split()} <= set(written)


def test_a_reader_that_has_gone_is_no_error() -> None:
    words = "--input-tokens 512 --output-tokens 64 --gpus 2 --cell 2 --connectors nixl --draws 2"
    with subprocess.Popen(
        [sys.executable, "-m", "pd_planner", *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asked:
        assert asked.stdout is not None
        asked.stdout.close()
        assert asked.stderr is not None
        told = asked.stderr.read()

    assert "Traceback" not in told
    assert "Exception" not in told


LARGE = ["--model", "llama-3.1-70b", "--gpu", "H200"]
LENGTHS = ["--input-tokens", "512", "--output-tokens", "64"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--trace", "TIMELESS"], "time"),
        (["--trace", "TIMELESS", "--rate", "3"], "--trace has its own rate"),
        ([*LENGTHS, "--speed", "2"], "--speed needs --trace"),
        (["--trace", "TIMELESS", "--speed", "2", "--", "--time-scale", "0.5"], "say the same in two ways"),
        ([*LENGTHS, "--", "--trace", "TIMELESS"], "after --: --trace is an option of pd-plan, too"),
        ([*LENGTHS, "--goodput", "itl:5"], "itl"),
        ([*LENGTHS, "--goodput", "ttft:1"], "nothing meets TTFT ≤ 1 ms"),
        ([*LENGTHS, "--attainment", "90"], "more than 1: write a share such as 0.9"),
        ([*LENGTHS, "--gpus", "0"], "expected a whole number of at least 1, got '0'"),
        ([*LENGTHS, "--rate", "-3"], "expected a number above 0, got '-3'"),
        ([*LENGTHS, "--rate", "1000", "--gpus", "2"], "2 GPUs cannot serve 1000 requests/s: "),
        ([*LENGTHS, "--connectors", "rdma"], "--connectors 'rdma': choose from"),
        (
            [*LENGTHS, "--objective", "gpus"],
            "--objective gpus needs --rate or --trace: the fewest GPUs for how many requests?",
        ),
        ([*LENGTHS, "--profile", "NO_NIXL", "--connectors", "nixl"], "the profile has no measurements of NIXL"),
        ([*LENGTHS, "--power-cap-w", "500"], "--power-cap-w needs --rate or --trace"),
        ([*LENGTHS, "--tensor-parallel", "4"], "--tensor-parallel 4: this profile is of one GPU per engine"),
        ([*LENGTHS, *LARGE, "--tensor-parallel", "4", "--gpus", "2"], "2 GPUs make no engine of 4"),
        (
            [*LENGTHS, "--kv-tokens", "500"],
            "every request has more than 500 tokens, prompt and answer together (576 at least)",
        ),
        ([*LENGTHS, "--max-model-len", "570"], "every request has more than 570 tokens"),
        (
            [*LENGTHS, "--max-model-len", "1000000"],
            "--max-model-len 1000000 is more than the KV cache of an engine holds",
        ),
        ([*LENGTHS, "--kv-tokens", "5000", "--max-num-batched-tokens", "9"], "which vLLM refuses"),
        ([*LENGTHS, "--", "--prefix-tokenz", "5"], "pd-loadgen run has no option --prefix-tokenz"),
        (["--input-tokens", "131070", "--output-tokens", "5"], "every request has more than 131,072 tokens"),
        (
            ["--input-tokens", "100000000", "--output-tokens", "5"],
            "--input-tokens 100000000: no engine has room for such",
        ),
        ([*LENGTHS, "--out", "TIMELESS"], "timeless.jsonl is a file: choose another --out"),
        (
            [*LENGTHS, "--profile", "nope.toml"],
            "pd-plan: the profile nope.toml cannot be read: there is no such file or folder",
        ),
        ([*LENGTHS, "--power-cap-w", "50", "--rate", "5"], "GPUs with 50 W in all cannot serve 5 requests/s: "),
        (["plans"], "there is no command 'plans'"),
        ([*LENGTHS, "--goodput", "ttft=500"], "limit 'ttft=500': write ttft, tpot or e2el, a colon and milliseconds"),
        (["--trace", "EMPTY"], "empty.csv: the file is empty"),
        (["--trace", "OTHER"], "the columns Timestamp, Request tokens, Response tokens (BurstGPT) or TIMESTAMP, "),
    ],
)
def test_what_cannot_be_planned_gets_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeless = tmp_path / "timeless.jsonl"
    timeless.write_text('{"input_length": 5, "output_length": 3}\n' * 3)
    no_nixl = tmp_path / "none.toml"
    no_nixl.write_text('base = "h200-llama3-8b"\nhandoff = {}\n')
    empty, other = tmp_path / "empty.csv", tmp_path / "other.csv"
    empty.write_text("")
    other.write_text("time,prompt,answer\n1,2,3\n")
    places = {"TIMELESS": str(timeless), "NO_NIXL": str(no_nixl), "EMPTY": str(empty), "OTHER": str(other)}

    try:
        status = main(["--draws", "2", *(places.get(word, word) for word in words)] if words != ["plans"] else words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else -1

    told = capsys.readouterr().err
    assert status == 2
    assert sentence in told
    assert "Traceback" not in told
