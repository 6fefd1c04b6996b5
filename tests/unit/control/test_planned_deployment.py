"""`pdctl up --plan`: a plan's engines are started, on other GPUs if the caller says so, and never others than planned."""

from pathlib import Path

import pytest
from support.control import environment, pdctl
from support.planning import written_plan as plan

from pd_contracts.names import Connector, Topology
from pd_contracts.settings import load
from pd_control.planning.gpus import PlanError
from pd_control.planning.plan import Engine
from pd_control.planning.plan import plan as processes
from pd_control.planning.planned_deployment import in_compose, read
from pd_control.settings import ControlSettings
from pd_simulator.steps.engines import Order


def test_a_cell_becomes_lists_of_gpus(tmp_path: Path) -> None:
    found = read(plan(tmp_path, 3, 1, 4, Connector.NIXL), {"HOME": "/root"})

    assert (found.topology, found.cells) == (Topology.DISAGG, 4)
    assert "the compose file has one prefill and one decode engine" in found.refusal
    assert found.variables["PREFILL_GPUS"] == "0,1,2"
    assert found.variables["DECODE_GPUS"] == "3"
    assert found.variables["KV_CONNECTOR"] == "NixlConnector"
    assert found.variables["MAX_NUM_SEQS"] == "64"
    assert found.variables["HOME"] == "/root"


def test_plain_engines_are_one_list_however_many_cells(tmp_path: Path) -> None:
    found = read(plan(tmp_path, 0, 1, 4), {"COMBINED_GPUS": "6,7"})

    assert (found.topology, found.cells) == (Topology.COMBINED, 1)
    assert found.variables["COMBINED_GPUS"] == "6,7"


def test_the_callers_gpus_win_if_they_are_as_many(tmp_path: Path) -> None:
    path = plan(tmp_path, 1, 1, 1, Connector.NIXL)

    assert read(path, {"PREFILL_GPUS": "5", "DECODE_GPUS": ""}).variables["PREFILL_GPUS"] == "5"
    assert read(path, {}).refusal == ""
    with pytest.raises(PlanError, match=r"PREFILL_GPUS lists 2 GPUs, and the plan \(planned\) has 1"):
        read(path, {"PREFILL_GPUS": "5,6"})
    with pytest.raises(
        PlanError, match="KV_CONNECTOR is ExampleConnector in the environment and NixlConnector in the plan"
    ):
        read(path, {"KV_CONNECTOR": "ExampleConnector"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("up", "--plan", "none.json"), "none.json: there is no such file or folder"),
        (("up", "--plan", "plan.json", "--prefill", "2"), "--prefill and --plan exclude each other"),
        (
            ("up", "--plan", "plan.json", "--containers"),
            "the compose file has one prefill and one decode engine, or two combined ones",
        ),
    ],
)
def test_what_cannot_be_started_gets_a_sentence(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    plan(tmp_path, 2, 1, 1, Connector.NIXL)

    done = pdctl(*words, env=environment(tmp_path / "state"), cwd=tmp_path)

    assert done.returncode == 2
    assert sentence in done.stdout + done.stderr


def test_two_adaptive_engines_are_those_of_the_compose_file(tmp_path: Path) -> None:
    path = plan(tmp_path, 0, 2, 3, Connector.P2P, order=Order.HAND_OFF, adaptive=True)

    found = read(path, {})

    assert (found.topology, found.cells, found.refusal) == (Topology.COMBINED, 3, "")
    there = in_compose(found.variables)
    assert (there["PREFILL_GPU"], there["DECODE_GPU"]) == ("0", "1")
    assert (there["ROUTING"], there["KV_BOTH"], there["STEP_PROFILE"]) == ("adaptive", "on", "h200-llama3-8b")
    elsewhere = in_compose(read(path, {"COMBINED_GPUS": "6,7"}).variables)
    assert (elsewhere["PREFILL_GPU"], elsewhere["DECODE_GPU"]) == ("6", "7")
    assert in_compose(read(path, {"DECODE_GPU": "5"}).variables)["DECODE_GPU"] == "5"


def test_containers_have_the_planned_gpus_of_both_roles(tmp_path: Path) -> None:
    path = plan(tmp_path, 1, 1, 1, Connector.P2P, order=Order.HAND_OFF)

    there = in_compose(read(path, {"PREFILL_GPUS": "3", "DECODE_GPUS": "2"}).variables)

    assert (there["PREFILL_GPU"], there["DECODE_GPU"]) == ("3", "2")


@pytest.mark.parametrize(
    ("others", "step_profile", "own", "reason"),
    [
        (3, "h200-llama3-8b", {}, "each with one GPU, and the plan is planned: remove --containers, or use Helm"),
        (2, "", {}, "the proxy's container cannot read {folder}/profile.toml: remove --containers; or mount it there"),
        (2, "h200-llama3-8b", {"COMBINED_GPUS": "4"}, "or two combined ones"),
    ],
)
def test_adaptive_engines_that_the_compose_file_cannot_start_have_a_reason(
    others: int, step_profile: str, own: dict[str, str], reason: str, tmp_path: Path
) -> None:
    path = plan(tmp_path, 0, others, 1, Connector.P2P, order=Order.HAND_OFF, adaptive=True, step_profile=step_profile)
    if own:
        path = plan(tmp_path, 0, 2)

    assert reason.format(folder=tmp_path) in read(path, own).refusal


def test_what_was_planned_is_what_starts(tmp_path: Path) -> None:
    found = read(plan(tmp_path, 2, 1, 3, Connector.NIXL), {"TENSOR_PARALLEL_SIZE": "", "DECODE_GPUS": "7"})

    started = processes(load(ControlSettings, found.variables), found.topology, Engine.SIM)

    assert started.shape == "2P1D"
    assert {process.name: process.gpus for process in started.engines} == {
        "prefill-0": [0],
        "prefill-1": [1],
        "decode-0": [7],
    }
    assert all(process.env["KV_CONNECTOR"] == "NixlConnector" for process in started.engines)


@pytest.mark.parametrize("prefills", [3, 11])
def test_engines_of_a_plan_never_meet_at_a_port(prefills: int, tmp_path: Path) -> None:
    found = read(plan(tmp_path, prefills, 1, 1, Connector.P2P), {})

    started = processes(load(ControlSettings, found.variables), found.topology, Engine.SIM)

    assert started.shape == f"{prefills}P1D"


def test_ports_are_the_callers(tmp_path: Path) -> None:
    found = read(plan(tmp_path, 3, 1, 1, Connector.P2P), {"DECODE_HTTP_PORT": "28005"})

    assert found.variables["DECODE_HTTP_PORT"] == "28005"
