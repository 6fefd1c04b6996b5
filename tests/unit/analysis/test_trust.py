"""Doubts about engines of other deployments, foreign load, and simulators that got no CPU."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from support.analysis import constant, deployment, group, manifest, power_log, request, run, staged

from pd_analysis.conclusions.verdict import verdict
from pd_analysis.doubts.doubt import Level
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.comparison import compared
from pd_analysis.numbers.measures import DECIDING, JOULES
from pd_analysis.numbers.trust import strangers, tokens_apart
from pd_analysis.records.run import Run
from pd_contracts.names import Role, Topology
from pd_contracts.records import EngineInfo, EngineTokens
from pd_contracts.timing import Stages


def served_by(*engines: str, prefills: Sequence[str] = ("",), own: Sequence[str] = ("combined-0", "combined-1")) -> Run:
    """141 requests, answered by the engines in turn, of a deployment that has `own`."""
    records = [
        staged(
            index,
            decode_instance=engines[index % len(engines)],
            prefill_instance=prefills[index % len(prefills)],
        )
        for index in range(141)
    ]
    infos = [
        EngineInfo(name=name, role=Role(name.split("-")[0]), engine="vllm", gpus=[n]) for n, name in enumerate(own)
    ]
    topology = Topology.DISAGG if any(name.startswith("decode") for name in own) else Topology.COMBINED
    about = manifest(topology, deployment=deployment(topology, engines=infos, gpus=len(infos)))
    boards = {n: (info.role, constant(300.0)) for n, info in enumerate(infos)}
    return run(records, about, power_log(boards))


def test_a_third_engine_in_a_deployment_of_two_is_a_stranger() -> None:
    found = strangers(served_by("combined-0", "combined-1", "combined-2"))

    assert found is not None
    assert (dict(found.requests), found.engines, found.answered) == ({"combined-2": 47}, 2, 3)


def test_nothing_is_decided_on_a_run_that_a_stranger_served() -> None:
    pair = group(
        served_by("combined-0", "combined-1", "combined-2"),
        served_by("decode-0", prefills=["prefill-0"], own=("prefill-0", "decode-0")),
    )

    (doubt,) = [each for each in doubts(pair) if "engines answered" in each.sentence]
    assert doubt.level is Level.STOP
    assert "combined-2 47 of 141" in doubt.sentence
    assert {compared(measure, *pair.results).winner for measure in (*DECIDING, JOULES)} == {None}
    assert verdict(pair, doubts(pair)).pairs[0].lead.startswith("No winner is named")


@pytest.mark.parametrize(
    "honest",
    [
        pytest.param(served_by("combined-0", "combined-1"), id="its own"),
        pytest.param(served_by("combined-0"), id="only one of its own"),
        pytest.param(
            served_by("decode-0", prefills=["prefill-0"], own=("prefill-0", "decode-3")), id="numbered by GPU"
        ),
        pytest.param(
            served_by(
                *("decode-0", "decode-1", "decode-2"),
                prefills=["prefill-0"],
                own=("prefill-0", "decode-1", "decode-2", "decode-3"),
            ),
            id="three decodes, numbered by GPU",
        ),
        pytest.param(served_by("combined-0", own=()), id="a deployment that nobody described"),
        pytest.param(run([request(0), request(1)]), id="no stages"),
    ],
)
def test_engines_that_may_be_its_own_are(honest: Run) -> None:
    assert strangers(honest) is None
    assert not [doubt for doubt in doubts(group(honest)) if "engines answered" in doubt.sentence]


def test_combined_engines_have_no_prefill_beside_them() -> None:
    found = strangers(served_by("combined-0", "combined-1", prefills=["", "", "prefill-0"]))

    assert found is not None
    assert dict(found.requests) == {"prefill-0": 47}


def test_no_more_engines_answer_than_there_are_gpus() -> None:
    unknown = served_by("combined-0", "combined-1", "combined-2", own=())
    about = msgspec.structs.replace(unknown.manifest.deployment, gpus=2)

    found = strangers(replace(unknown, manifest=msgspec.structs.replace(unknown.manifest, deployment=about)))

    assert found is not None
    assert (found.engines, found.answered) == (2, 3)


def test_a_strange_prefill_is_found_too() -> None:
    found = strangers(served_by("decode-0", prefills=["prefill-0", "prefill-1"], own=("prefill-0", "decode-0")))

    assert found is not None
    assert list(found.requests) == ["prefill-1"]


# --- tokens ------------------------------------------------------------------------------------------------------------------


def counting(of: Run, *written: float, begin: float = -1.0, end: float = 12.0) -> Run:
    """Counters of the engines that write, before and after the load."""
    return replace(
        of,
        engines=tuple(
            EngineTokens(
                t=t, name=f"combined-{number}", role=Role.COMBINED, output=1000.0 + (tokens if t == end else 0)
            )
            for number, tokens in enumerate(written)
            for t in (begin, end)
        ),
    )


@pytest.mark.parametrize(
    ("written", "word"),
    [
        pytest.param((212.0, 211.0), None, id="all of it"),
        pytest.param((215.0, 211.0), None, id="within the error of counting"),
        pytest.param((141.0, 141.0), "fewer", id="a stranger wrote a third"),
        pytest.param((600.0, 600.0), "more", id="somebody else's load"),
    ],
)
def test_engines_wrote_what_the_requests_got(written: tuple[float, ...], word: str | None) -> None:
    # 141 requests of 3 tokens: 423
    measured = counting(served_by("combined-0", "combined-1"), *written)
    found = [doubt for doubt in doubts(group(measured)) if "its engines wrote" in doubt.sentence]

    assert bool(found) == (word is not None)
    assert (tokens_apart(measured) is None) == (word is None)
    assert all(doubt.level is Level.STOP for doubt in found)


@pytest.mark.parametrize(
    ("written", "word"),
    [
        pytest.param(282.0, None, id="all but the first tokens"),
        pytest.param(200.0, "fewer", id="a stranger wrote some"),
    ],
)
def test_first_tokens_that_prefill_wrote_are_not_missed_at_decode(written: float, word: str | None) -> None:
    # 141 requests of 3 tokens, of which prefill wrote the first
    own = served_by("decode-0", prefills=("prefill-0",), own=("prefill-0", "decode-0"))
    rows = own.requests.rows.assign(handed_off=True)
    counted = tuple(
        EngineTokens(t=t, name=name, role=Role(name[:-2]), output=output)
        for t, parts in ((-1.0, (0.0, 0.0)), (12.0, (141.0, written)))
        for name, output in zip(("prefill-0", "decode-0"), parts, strict=True)
    )
    measured = replace(own, requests=replace(own.requests, rows=rows), engines=counted)

    found = [doubt for doubt in doubts(group(measured)) if "its engines wrote" in doubt.sentence]

    assert bool(found) == (word is not None)


def test_who_wrote_the_first_token_is_read_from_the_stages() -> None:
    stages = Stages(queue=0.1, prefill=1.0, kv_and_first_decode=0.1, decode=2.0, decode_instance="decode-0")
    handed = msgspec.structs.replace(stages, first_token="prefill")
    rows = run([request(0, 0.1, stages=handed), request(1, 0.2, stages=stages), request(2, 0.3)]).requests.rows

    assert list(rows["handed_off"]) == [True, False, False]


def test_counters_of_some_engines_or_of_a_part_of_the_load_say_nothing() -> None:
    both = served_by("combined-0", "combined-1")

    assert tokens_apart(counting(both, 100.0)) is None
    assert tokens_apart(counting(both, 100.0, 100.0, begin=5.0, end=6.0)) is None


# --- simulator ---------------------------------------------------------------------------------------------------------------


def stepping(of: Run, late: float) -> Run:
    readings = [(0.0, 10.0, 10.0), (11.0, 1010.0, 10.0 + late)]
    tokens = [
        EngineTokens(t=t, name="combined-0", role=Role.COMBINED, steps=steps, late_steps=late_steps)
        for t, steps, late_steps in readings
    ]
    return replace(of, engines=tuple(tokens))


@pytest.mark.parametrize(("late", "doubted"), [(120.0, True), (20.0, False)])
def test_a_simulator_without_a_processor_is_doubted(late: float, doubted: bool) -> None:
    found = [doubt for doubt in doubts(group(stepping(run([request(0)]), late))) if "ended late" in doubt.sentence]

    assert bool(found) == doubted
    assert all("12%" in doubt.sentence for doubt in found)
