"""What `pdctl up` runs."""

from pathlib import Path

import pytest
from support.control import settings

from pd_contracts.names import Role, Topology
from pd_control.cli.options import parser
from pd_control.planning.gpus import PlanError
from pd_control.planning.plan import Engine, Plan, plan, planned_by


def names(planned: Plan) -> list[str]:
    return [process.name for process in planned.processes]


def listens(planned: Plan, name: str) -> list[int]:
    return [listen.port for process in planned.processes if process.name == name for listen in process.listens]


def env(planned: Plan, name: str) -> dict[str, str]:
    return next(process.env for process in planned.processes if process.name == name)


def test_one_prefill_and_one_decode_by_default() -> None:
    planned = plan(settings(), Topology.DISAGG, Engine.SIM)

    assert names(planned) == ["proxy", "prefill-0", "decode-0", "monitor"]
    assert listens(planned, "proxy") == [10001, 30001]
    assert listens(planned, "prefill-0") == [20003, 21001]
    assert listens(planned, "decode-0") == [20005, 22001]
    assert [process.gpus for process in planned.engines] == [[0], [1]]
    assert planned.expected == {Role.PREFILL: 1, Role.DECODE: 1}
    assert (planned.shape, planned.gpus) == ("1P1D", 2)


@pytest.mark.parametrize(
    ("words", "listed", "shape"),
    [
        ([], {}, "1P1D"),
        ([], {"combined_gpus": (0, 1, 2)}, "3 combined"),
        ([], {"combined_gpus": (0, 1, 2), "prefill_gpus": (0,), "decode_gpus": (1,)}, "1P1D"),
        (["disagg"], {"combined_gpus": (0, 1, 2)}, "1P1D"),
        (["--combined", "3"], {}, "3 combined"),
        (["--combined", "3"], {"prefill_gpus": (0,), "decode_gpus": (1,)}, "3 combined"),
        (["--prefill", "2"], {"combined_gpus": (0, 1, 2)}, "2P1D"),
    ],
)
def test_without_a_topology_it_is_that_of_the_engines_that_are_asked_for(
    words: list[str], listed: dict[str, tuple[int, ...]], shape: str
) -> None:
    options = parser().parse_args(["up", "--engine", "sim", *words])

    assert planned_by(settings(**listed), options).shape == shape


def test_engines_of_both_topologies_are_refused() -> None:
    options = parser().parse_args(["up", "--engine", "sim", "--prefill", "1", "--combined", "1"])

    with pytest.raises(PlanError, match="--combined does not belong to topology disagg: remove it"):
        planned_by(settings(), options)


def test_the_combined_topology_uses_the_same_gpus() -> None:
    planned = plan(settings(prefill_gpus=(0,), decode_gpus=(1, 2, 3)), Topology.COMBINED, Engine.SIM)

    assert [process.gpus for process in planned.engines] == [[0], [1], [2], [3]]
    assert planned.expected == {Role.COMBINED: 4}


def test_lists_of_gpus_give_the_number_of_engines() -> None:
    planned = plan(settings(prefill_gpus=(4, 5), decode_gpus=(6,)), Topology.DISAGG, Engine.VLLM)

    assert planned.shape == "2P1D"
    assert listens(planned, "prefill-1") == [20004, 21101]
    assert [env(planned, name)["CUDA_VISIBLE_DEVICES"] for name in ("prefill-0", "prefill-1", "decode-0")] == [
        "4",
        "5",
        "6",
    ]


def test_counts_take_consecutive_gpus() -> None:
    planned = plan(settings(), Topology.DISAGG, Engine.SIM, {Role.PREFILL: 1, Role.DECODE: 3})

    assert [process.gpus for process in planned.engines] == [[0], [1], [2], [3]]
    assert [env(planned, f"decode-{n}")["SIM_GPU"] for n in range(3)] == ["1", "2", "3"]


def test_a_tensor_parallel_engine_gets_several_gpus() -> None:
    planned = plan(settings(tensor_parallel_size=2), Topology.DISAGG, Engine.VLLM)

    assert [process.gpus for process in planned.engines] == [[0, 1], [2, 3]]
    assert env(planned, "decode-0")["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize(
    ("changes", "topology", "counts", "sentence"),
    [
        ({"prefill_gpu": 1}, Topology.DISAGG, {}, "GPU 1 is given to both prefill-0 and decode-0"),
        (
            {"prefill_gpus": (0, 1)},
            Topology.DISAGG,
            {Role.PREFILL: 3},
            "--prefill 3 needs 3 GPUs and PREFILL_GPUS lists 2",
        ),
        ({"combined_gpus": (0, 1, 2), "tensor_parallel_size": 2}, Topology.COMBINED, {}, "do not divide"),
        (
            {},
            Topology.DISAGG,
            {Role.PREFILL: 3},
            "port 20005 would be used by both prefill-2 (PREFILL_HTTP_PORT) and decode-0",
        ),
        ({"combined_http_port": 65535}, Topology.COMBINED, {}, "port 65536 is above 65535"),
        (
            {"monitor_port": 10001},
            Topology.DISAGG,
            {},
            "port 10001 would be used by both proxy (HTTP_PROXY_PORT) and monitor",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_variable_to_change(
    changes: dict[str, object], topology: Topology, counts: dict[Role, int | None], sentence: str
) -> None:
    with pytest.raises(PlanError) as refusal:
        plan(settings(**changes), topology, Engine.SIM, counts)

    assert sentence in str(refusal.value)


def test_engines_are_told_who_they_are_and_where_the_proxy_is() -> None:
    planned = plan(settings(proxy_port=31001, model="m"), Topology.DISAGG, Engine.SIM, {Role.DECODE: 2})

    told = env(planned, "decode-1")

    assert (told["PD_ROLE"], told["INSTANCE"], told["MODEL"]) == ("decode", "1", "m")
    assert (told["PROXY_HOST"], told["PROXY_PORT"], told["VLLM_HOST_IP"]) == ("127.0.0.1", "31001", "127.0.0.1")


def test_the_monitor_polls_the_board_of_every_simulated_engine() -> None:
    planned = plan(settings(), Topology.COMBINED, Engine.SIM)

    told = env(planned, "monitor")

    assert told["SIM_BOARDS"] == "http://127.0.0.1:8000/sim/board,http://127.0.0.1:8001/sim/board"
    # PREFILL_GPU of the environment must not make a combined GPU a prefill one.
    assert (told["PREFILL_GPUS"], told["PREFILL_GPU"], told["COMBINED_GPUS"]) == ("", "", "0,1")


def test_vllm_runs_in_its_own_interpreter_which_learns_where_pdstack_is() -> None:
    planned = plan(settings(engine_python="/opt/vllm/bin/python"), Topology.DISAGG, Engine.VLLM)

    engine = planned.engines[0]

    assert engine.argv == ["/opt/vllm/bin/python", "-m", "pd_engine"]
    assert [Path(folder).parent.name for folder in engine.python_path] == ["contracts", "engine", "connector"]
