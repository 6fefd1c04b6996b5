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
from pd_control.planning.planned_deployment import read
from pd_control.settings import ControlSettings


def test_a_cell_becomes_lists_of_gpus(tmp_path: Path) -> None:
    found = read(plan(tmp_path, 3, 1, 4, Connector.NIXL), {"HOME": "/root"})

    assert (found.topology, found.cells, found.fits_compose) == (Topology.DISAGG, 4, False)
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
    assert read(path, {}).fits_compose
    with pytest.raises(PlanError, match=r"PREFILL_GPUS lists 2 GPUs, and the plan \(planned\) has 1"):
        read(path, {"PREFILL_GPUS": "5,6"})
    with pytest.raises(
        PlanError, match="KV_CONNECTOR is ExampleConnector in the environment and NixlConnector in the plan"
    ):
        read(path, {"KV_CONNECTOR": "ExampleConnector"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("up", "--plan", "none.json"), "none.json: No such file or directory"),
        (("up", "--plan", "plan.json", "--prefill", "2"), "--prefill and --plan exclude each other"),
        (("up", "--plan", "plan.json", "--containers"), "the compose file has 1P1D or two plain engines"),
    ],
)
def test_what_cannot_be_started_gets_a_sentence(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    plan(tmp_path, 2, 1, 1, Connector.NIXL)

    done = pdctl(*words, env=environment(tmp_path / "state"), cwd=tmp_path)

    assert done.returncode == 2
    assert sentence in done.stdout + done.stderr


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
