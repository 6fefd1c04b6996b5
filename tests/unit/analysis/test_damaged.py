"""Records that were changed or damaged: left out or doubted with the reason, and never a winner that the others would not name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.analysis import constant, manifest, power_log, request, workload, write_run

from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.comparison import compared
from pd_analysis.numbers.evaluation import evaluate, grouped
from pd_analysis.numbers.measures import DECIDING
from pd_analysis.records.reader import load_tree
from pd_analysis.tables.energy import boards, energy_by_role
from pd_analysis.words.language import in_language
from pd_contracts.names import Role, Topology
from pd_contracts.records import GPU, MANIFEST, NOT_MEASURED, REQUESTS

Json = dict[str, Any]
Change = Callable[[list[Json]], object]


def pair(root: Path) -> Path:
    """A disaggregated run that is worse than the combined one: a later first token, and more power."""
    for topology, ttft, watts in ((Topology.COMBINED, 0.1, 300.0), (Topology.DISAGG, 0.3, 500.0)):
        roles = (Role.PREFILL, Role.DECODE) if topology is Topology.DISAGG else (Role.COMBINED, Role.COMBINED)
        records = [request(number, 0.5 + number * 0.1, ttft=ttft, requested_output_tokens=3) for number in range(100)]
        power = power_log({index: (role, constant(watts)) for index, role in enumerate(roles)}, end=13.0)
        about = manifest(topology, window=(0.5, 10.4 + ttft + 0.02), workload=workload(rate=10.0))
        write_run(root / topology.value, records, about, power)
    return root


def changed(path: Path, change: Change) -> None:
    """The lines of a file of JSON, or the whole of one that is not of lines, after the change."""
    if path.name == MANIFEST:
        values = [msgspec.json.decode(path.read_bytes())]
        change(values)
        path.write_bytes(msgspec.json.encode(values[0]))
        return
    values = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    change(values)
    path.write_bytes(b"".join(msgspec.json.encode(value) + b"\n" for value in values))


def winners(root: Path) -> set[str | None]:
    """Labels of those that are called better in anything."""
    (group,) = grouped(evaluate(load_tree([root]).runs))
    found = [compared(measure, group.baseline, other).winner for measure in DECIDING for other in group.others]
    return {None if winner is None else winner.label for winner in found}


def each(**fields: Any) -> Change:
    return lambda values: [value.update(fields) for value in values]


def moved(seconds: float, name: str) -> Change:
    def move(values: list[Json]) -> None:
        for value in values:
            if name == "chunks":
                value[name] = [[at + seconds, tokens] for at, tokens in value[name]]
            else:
                value[name] += seconds

    return move


def test_the_honest_pair_has_a_winner(tmp_path: Path) -> None:
    assert winners(pair(tmp_path)) == {"combined", None}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        pytest.param(REQUESTS, moved(-5.0, "chunks"), "answered before it was sent", id="tokens before the send"),
        pytest.param(REQUESTS, moved(5.0, "scheduled"), "sent before it was due", id="a send before its time"),
        pytest.param(REQUESTS, moved(-0.2, "end"), "got tokens after its end", id="tokens after the end"),
        pytest.param(
            REQUESTS,
            lambda values: [value["chunks"].reverse() for value in values],
            "not in the order of time",
            id="tokens backwards",
        ),
        pytest.param(
            REQUESTS,
            each(output_tokens=-3),
            "output_tokens: expected a whole number of at least 0",
            id="less than no tokens",
        ),
        pytest.param(REQUESTS, lambda values: values[0].update(end=1e300), "requests.jsonl:1", id="an impossible time"),
        pytest.param(
            REQUESTS,
            lambda values: [value.update(scheduled=value["scheduled"] / 3, sent=None) for value in values],
            "requests were due at 30 a second, its manifest says 10",
            id="another rate",
        ),
        pytest.param(
            REQUESTS,
            each(
                stages={
                    "queue": 0,
                    "prefill": -50,
                    "kv_and_first_decode": 1,
                    "decode": 1,
                    "decode_instance": "decode-0",
                }
            ),
            "took less than no time",
            id="a stage before it began",
        ),
        pytest.param(
            MANIFEST, lambda values: values[0]["workload"].update(requests=10), "its manifest says 10", id="too many"
        ),
        pytest.param(MANIFEST, lambda values: values[0]["deployment"].update(gpus=-2), "gpus", id="less than no GPUs"),
    ],
)
def test_what_cannot_have_been_is_left_out_with_the_reason(
    tmp_path: Path, name: str, change: Change, reason: str
) -> None:
    changed(pair(tmp_path) / "disagg" / name, change)

    loaded = load_tree([tmp_path])

    assert [run.path.name for run in loaded.runs] == ["combined"]
    assert [reason in problem.sentence for problem in loaded.problems] == [True]


def test_a_reason_names_the_file_once(tmp_path: Path) -> None:
    cut = pair(tmp_path) / "disagg" / REQUESTS
    cut.write_bytes(cut.read_bytes()[:-9])
    (tmp_path / "combined" / GPU).write_text("{}\n")

    said = {problem.path.name: (problem.sentence, problem.kept) for problem in load_tree([tmp_path]).problems}

    assert said["disagg"] == ("left out: requests.jsonl: is cut in its last line; measure it again", False)
    assert said["combined"] == ("kept without its power: gpu.jsonl:1: the field clock is missing", True)


def test_what_a_comparison_could_not_measure_is_said_in_the_reports_language(tmp_path: Path) -> None:
    part = {"what": "1P3D at 12 requests/s", "reason": "out of memory"}
    (pair(tmp_path) / NOT_MEASURED).write_bytes(msgspec.json.encode({"parts": [part]}))
    (problem,) = load_tree([tmp_path]).problems

    with in_language("zh"):
        assert problem.sentence == "1P3D at 12 requests/s 未测量：out of memory"


@pytest.mark.parametrize(
    ("name", "change", "doubt"),
    [
        pytest.param(
            REQUESTS, each(output_tokens=30), "usage counts 3,000 output tokens, but 300", id="usage of ten times"
        ),
        pytest.param(
            REQUESTS,
            lambda values: [value.update(chunks=value["chunks"][:1], output_tokens=30) for value in values],
            "usage counts",
            id="usage of what never came",
        ),
        pytest.param(
            MANIFEST,
            lambda values: values[0]["deployment"].update(gpus=1),
            "said to have 1 GPU, but its engines name 2 GPUs",
            id="fewer GPUs than engines name",
        ),
        pytest.param(
            MANIFEST,
            lambda values: values[0]["client"].update(dispatch_lag_ms={"p99": 900.0}),
            "load generator itself was late",
            id="a late client that calls itself valid",
        ),
        pytest.param(REQUESTS, each(prompt_tokens=20), "prompts differ in length", id="shorter prompts"),
        pytest.param(
            REQUESTS,
            lambda values: [
                value.update(
                    {key: value[key] * 1.1 for key in ("scheduled", "sent", "headers", "first_byte", "end")},
                    chunks=[[at * 1.1, tokens] for at, tokens in value["chunks"]],
                )
                for value in values
            ],
            "due at different times",
            id="another timetable under one hash",
        ),
    ],
)
def test_what_makes_a_run_look_better_names_no_winner(tmp_path: Path, name: str, change: Change, doubt: str) -> None:
    changed(pair(tmp_path) / "disagg" / name, change)

    assert winners(tmp_path) == {None}
    (group,) = grouped(evaluate(load_tree([tmp_path]).runs))
    assert any(doubt in found.sentence for found in doubts(group))


@pytest.mark.parametrize("window", [[0.5, 5.0], [4.0, 10.0], [0.5, 1e6], [10.0, 0.5], [2.0, 2.0]])
def test_a_window_is_that_of_its_requests_whatever_the_manifest_says(tmp_path: Path, window: list[float]) -> None:
    changed(pair(tmp_path) / "disagg" / MANIFEST, lambda values: values[0].update(window=window))

    loaded = load_tree([tmp_path], cut_s=1.0)

    assert loaded.runs[-1].window == pytest.approx((1.5, 10.72))
    assert loaded.runs[-1].requests.measured["scheduled"].min() == pytest.approx(1.5)
    assert ["another window" in problem.sentence for problem in loaded.problems] == [True]


def test_runs_with_other_limits_are_not_compared_by_what_keeps_them(tmp_path: Path) -> None:
    """With limits ten times as wide everything keeps them, which says nothing."""
    path = pair(tmp_path) / "disagg" / MANIFEST
    changed(path, lambda values: values[0]["workload"].update(goodput={"ttft": 2000.0, "tpot": 500.0}))

    (group,) = grouped(evaluate(load_tree([tmp_path]).runs))
    found = {measure.key: compared(measure, group.baseline, group.others[0]) for measure in DECIDING}

    assert found["Goodput per GPU"].winner is None
    assert found["TTFT p50"].winner is group.baseline


VALUES: st.SearchStrategy[object] = st.sampled_from(
    [None, 0, -1, 2**63, 2**64, 1e308, -1e308, 5e-324, "x", [], {}, True, 1e9]
)


@given(
    line=st.integers(0, 250),
    field=st.sampled_from(
        [
            "t",
            "index",
            "role",
            "power_w",
            "power_average_w",
            "energy_mj",
            "utilization",
            "throttle_reasons",
            "interval_s",
        ]
    ),
    value=VALUES,
    until=st.sampled_from([1, 20, 300]),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_whatever_stands_in_a_power_record_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, line: int, field: str, value: object, until: int
) -> None:
    root = pair(tmp_path_factory.mktemp("damaged"))
    changed(
        root / "disagg" / GPU, lambda values: [each_.update({field: value}) for each_ in values[line : line + until]]
    )

    loaded = load_tree([root])
    (group,) = grouped(evaluate(loaded.runs))

    assert len(group.results) == 2
    assert winners(root) <= {"combined", None}
    for shown in (energy_by_role(group), boards(group)):
        assert shown is not None
        assert "nan" not in str(shown.rows)
    assert all("nan" not in doubt.sentence for doubt in doubts(group, loaded.problems))
