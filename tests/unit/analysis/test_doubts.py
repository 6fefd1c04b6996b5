"""Each doubt appears with its cause, and not without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support.analysis import (
    PowerLog,
    constant,
    deployment,
    failed,
    group,
    manifest,
    power_log,
    request,
    run,
    wavering,
    workload,
)

from pd_analysis.conclusions.advice import of_group
from pd_analysis.doubts.doubt import Level
from pd_analysis.doubts.one_load import doubts
from pd_analysis.numbers.evaluation import Group
from pd_analysis.records.run import Problem, Run
from pd_contracts.names import SIMULATED_ENGINE, Role, Topology
from pd_contracts.records import ClientHealth, EngineInfo, RequestRecord


def hundred(**changes: Any) -> list[RequestRecord]:
    return [request(index, index * 0.09, **changes) for index in range(100)]


def power(topology: Topology = Topology.COMBINED, **changes: Any) -> PowerLog:
    roles = (Role.PREFILL, Role.DECODE) if topology is Topology.DISAGG else (Role.COMBINED, Role.COMBINED)
    boards: dict[int, tuple[Role | None, Callable[[np.ndarray], np.ndarray]]] = {
        number: (role, constant(300.0)) for number, role in enumerate(roles)
    }
    return power_log(boards, **changes)


def good(topology: Topology = Topology.COMBINED, **changes: Any) -> Run:
    return run(hundred(), manifest(topology, **changes), power(topology))


def _about(found: Group, word: str) -> list[str]:
    return [f"{doubt.level.name} {doubt.sentence} {doubt.remedy}" for doubt in doubts(found) if word in doubt.sentence]


def test_two_good_runs_leave_no_doubt() -> None:
    assert doubts(group(good(Topology.DISAGG), good(Topology.COMBINED))) == []


LATE = ClientHealth(
    valid=False, dispatch_lag_ms={"p99": 41.0}, receive_lag_ms={}, limit_ms=5.0, remedy="Use more --processes."
)
SLOW_READER = msgspec.structs.replace(LATE, dispatch_lag_ms={"p99": 0.6}, receive_lag_ms={"p99": 62.0})
SIMULATED = deployment(engines=[EngineInfo(name="combined-0", role=Role.COMBINED, engine=SIMULATED_ENGINE)])


@pytest.mark.parametrize(
    ("run_", "level", "says", "remedy"),
    [
        pytest.param(
            run(hundred(), manifest(client=LATE), power()),
            "STOP",
            "late (requests sent late: p99 41.0 ms; limit 5 ms)",
            "--processes",
            id="client late",
        ),
        pytest.param(
            run(hundred(), manifest(client=SLOW_READER), power()),
            "STOP",
            "late (answers read late: p99 62.0 ms; limit 5 ms)",
            "--processes",
            id="client reads late",
        ),
        pytest.param(
            run(hundred(), manifest(client=None), power()), "CARE", "did not say", "pd-loadgen", id="client silent"
        ),
        pytest.param(
            run(hundred(), manifest(deployment=SIMULATED), power()),
            "STOP",
            "SIMULATED",
            "hardware",
            id="engine simulated",
        ),
        pytest.param(
            run(hundred(), manifest(), power(simulated=True)), "STOP", "SIMULATED", "hardware", id="board simulated"
        ),
        pytest.param(
            run(hundred()[:99], manifest(), power()), "CARE", "p99 of 99 requests", "--duration", id="99 requests"
        ),
        pytest.param(
            run([*hundred(), failed(100), failed(101, kind="timeout")], manifest(), power()),
            "CARE",
            "2 of 102 requests failed (1 status and 1 timeout)",
            "logs",
            id="failures",
        ),
        pytest.param(
            run([failed(0)], manifest(), power()),
            "STOP",
            "all requests failed (1 status), so it has no latencies",
            "logs",
            id="only failures",
        ),
        pytest.param(
            run(hundred(output_tokens=None), manifest(), power()),
            "CARE",
            "tokens of every request",
            "usage",
            id="no usage",
        ),
        pytest.param(
            run(hundred(), manifest(deployment=deployment(gpus=None)), power()),
            "CARE",
            "number of GPUs is unknown",
            "--gpus",
            id="GPUs unknown",
        ),
        pytest.param(run(hundred(), manifest()), "CARE", "no power was recorded", "--monitor", id="no power"),
        pytest.param(
            run(hundred(), manifest(), power(end=8.0)),
            "CARE",
            "GPU 0 could not be read for 2.00 s",
            "NTP",
            id="power cut short",
        ),
        pytest.param(
            run(hundred(), manifest(window=(0.0, 4.0)), power()),
            "CARE",
            "window of 4.00 s is short",
            "--duration",
            id="short window",
        ),
        pytest.param(
            run(hundred(), manifest(), power(throttle=0x40)),
            "CARE",
            "GPU 0 thermal slowdown (hardware) in 100% of samples",
            "cooling",
            id="throttled",
        ),
        pytest.param(
            run(
                hundred(),
                manifest(),
                power_log({n: (Role.COMBINED, wavering(300.0)) for n in (0, 1)}, energy_mj=None),
            ),
            "CARE",
            "GPU 0 and GPU 1 had no usable energy counter",
            "same method",
            id="no counter",
        ),
        pytest.param(
            run(hundred(), manifest(), power_log({0: (Role.COMBINED, constant(300.0))})),
            "CARE",
            "1 GPU with a role, but not for exactly the 2",
            "COMBINED_GPUS",
            id="a GPU not recorded",
        ),
        pytest.param(
            run(hundred(), manifest(), power_log({0: (None, constant(300.0))})),
            "CARE",
            "no recorded GPU has a role",
            "PREFILL_GPUS",
            id="no roles",
        ),
        pytest.param(
            run(
                hundred(),
                manifest(),
                power_log(
                    {n: (Role.COMBINED, lambda t: 300 + 40 * np.cos(2 * np.pi * t / 0.1)) for n in (0, 1)},
                    power_average_w=None,
                ),
            ),
            "CARE",
            "neither power reading agrees",
            "timeline",
            id="closure",
        ),
        pytest.param(
            run([request(n, n * 0.09, sent=n * 0.09 + 0.05) for n in range(100)], manifest(), power()),
            "CARE",
            "from the schedule but",
            "CPU cores",
            id="client's share of TTFT",
        ),
    ],
)
def test_a_doubt_about_one_run(run_: Run, level: str, says: str, remedy: str) -> None:
    (found,) = _about(group(run_), says)

    assert found.startswith(level)
    assert remedy in found


@pytest.mark.parametrize(
    ("other", "level", "says"),
    [
        pytest.param(good(schedule_hash="b" * 16), "STOP", "2 different schedules", id="schedules"),
        pytest.param(good(deployment=deployment(gpus=3)), "STOP", "combined (b) has 3 GPUs", id="GPU counts"),
        pytest.param(
            good(workload=workload(model="llama-70b")),
            "STOP",
            "different models: llama-3.1-8b and llama-70b",
            id="models",
        ),
        pytest.param(good(workload=workload(goodput={"ttft": 1.0})), "CARE", "different goodput limits", id="limits"),
        pytest.param(
            run(hundred(output_tokens=9), manifest(), power()),
            "CARE",
            "different numbers of output tokens",
            id="work",
        ),
    ],
)
def test_a_doubt_about_a_pair(other: Run, level: str, says: str) -> None:
    alike = [_renamed(good(), "a"), _renamed(good(), "b")]
    (found,) = _about(group(_renamed(good(), "a"), _renamed(other, "b")), says)

    assert found.startswith(level)
    assert _about(group(*alike), says) == []


def _renamed(run_: Run, name: str) -> Run:
    return Run(path=Path(name), manifest=run_.manifest, requests=run_.requests, gpu=run_.gpu, samples=run_.samples)


def test_engines_without_gpus_are_not_to_be_decided_on() -> None:
    engines = [EngineInfo(name="combined-0", role=Role.COMBINED, engine="vllm")]
    on_the_cpu = run(hundred(), manifest(deployment=deployment(engines=engines)), None)

    assert any(found.startswith("STOP") for found in _about(group(on_the_cpu), "ran without GPUs"))
    assert _about(group(good()), "ran without GPUs") == []


def test_what_was_left_out_is_a_doubt_and_the_heavy_ones_come_first() -> None:
    about = msgspec.structs.replace(manifest(), client=LATE)

    found = doubts(group(run(hundred(), about)), [Problem(Path("results/x"), "left out: it is cut")])

    assert [doubt.level for doubt in found] == sorted(
        (doubt.level for doubt in found), key=lambda level: level is Level.CARE
    )
    assert any("results/x: left out: it is cut" in doubt.sentence for doubt in found)


@pytest.mark.parametrize(("kept", "counts"), [(True, "is part of"), (False, "is not part of")])
def test_what_was_read_only_in_part_still_counts(kept: bool, counts: str) -> None:
    found = doubts(group(good()), [Problem(Path("results/x"), "kept without its power", kept=kept)])

    assert [counts in doubt.remedy for doubt in found] == [True]


def test_a_deployment_that_answered_nothing_keeps_up_with_nothing() -> None:
    nothing = group(run([failed(number) for number in range(100)], manifest(), power()))

    assert of_group(nothing).sentences == ()
