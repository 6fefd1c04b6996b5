"""Helm renders the planned deployment from values.yaml."""

import json
from pathlib import Path

import msgspec
import pytest
import yaml
from support import chart
from support.planning import written_plan

from pd_contracts.names import Connector, Topology
from pd_control.planning.gpus import PlanError
from pd_control.planning.planned_deployment import read as read_planned
from pd_control.settings import ControlSettings
from pd_planner.emit import deploy
from pd_planner.emit.deploy import env_text, values_text
from pd_planner.emit.plan_file import PlanFileError, read_plan
from pd_planner.search.candidates import EngineLimits
from pd_simulator.steps.engines import Order

P2P, NIXL = Connector.P2P, Connector.NIXL


def test_a_plan_without_a_deployment_is_none(tmp_path: Path) -> None:
    path = written_plan(tmp_path, 0, 3)
    path.write_text(json.dumps({**json.loads(path.read_text()), "choices": []}))

    with pytest.raises(PlanFileError, match=r"not a plan of pd-plan: it names no deployment"):
        read_plan(path)
    with pytest.raises(PlanError, match="it names no deployment"):
        read_planned(path, {})


@pytest.mark.parametrize(
    ("shape", "options", "engines", "gpus"),
    [
        ((0, 3), {}, {"combined": 3}, 1),
        ((0, 1, 4), {"tensor_parallel": 2}, {"combined": 4}, 2),
        ((1, 1, 1, P2P), {"order": Order.HAND_OFF}, {"prefill": 1, "decode": 1}, 1),
        ((3, 1, 2, P2P), {"order": Order.AT_ONCE}, {"prefill": 6, "decode": 2}, 1),
        ((6, 2, 1, NIXL), {}, {"prefill": 6, "decode": 2}, 1),
        ((2, 1, 1, Connector.P2P_NCCL), {}, {"prefill": 2, "decode": 1}, 1),
        ((12, 4, 1, P2P), {}, {"prefill": 12, "decode": 4}, 1),  # more than a node has: no pod of all
        ((1, 3, 4, NIXL), {"tensor_parallel": 4}, {"prefill": 1, "decode": 3}, 4),
        ((0, 4, 2, P2P), {"order": Order.HAND_OFF, "adaptive": True}, {"combined": 4}, 1),  # one of two cells
    ],
)
def test_helm_makes_the_planned_engines(
    shape: tuple[int, ...], options: dict[str, object], engines: dict[str, int], gpus: int, tmp_path: Path
) -> None:
    plan = read_plan(written_plan(tmp_path, *shape, **options))  # type: ignore[arg-type]
    deployment = plan.best.deployment

    manifests = chart.render(yaml.safe_load(values_text(plan)))

    found: dict[str, int] = {}
    for workload in chart.of_kind(manifests, "StatefulSet"):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            variables = chart.environment(container)
            if "MAX_NUM_SEQS" not in variables:
                continue  # no engine
            role = container["name"].split("-")[0].replace("engine", "combined")
            found[role] = found.get(role, 0) + workload["spec"]["replicas"]
            assert variables["MAX_NUM_SEQS"] == "64"
            assert variables.get("KV_BOTH") == ("on" if deployment.adaptive else None)
            assert variables["TENSOR_PARALLEL_SIZE"] == container["resources"]["limits"]["nvidia.com/gpu"] == str(gpus)
    assert found == engines
    proxy = chart.environment(chart.the(manifests, "Deployment", "proxy")["spec"]["template"]["spec"]["containers"][0])
    assert proxy["FIRST_TOKEN"] == ("decode" if deployment.order is Order.AT_ONCE else "prefill")
    if deployment.connector is not None:
        assert proxy["KV_CONNECTOR"] == deployment.connector
    assert proxy.get("ROUTING", "static") == ("adaptive" if deployment.adaptive else "static")


@pytest.mark.parametrize(("shipped", "named"), [("h200-llama3-8b", "h200-llama3-8b"), ("", "{folder}/profile.toml")])
def test_adaptive_roles_come_with_what_the_proxy_must_know(shipped: str, named: str, tmp_path: Path) -> None:
    path = written_plan(tmp_path, 0, 3, 2, P2P, order=Order.HAND_OFF, adaptive=True, step_profile=shipped)

    planned = read_planned(path, {})

    assert (planned.topology, planned.cells) == (Topology.COMBINED, 2)
    wanted = {
        "COMBINED_GPUS": "0,1,2",
        "KV_CONNECTOR": "P2pConnector",
        "KV_BOTH": "on",
        "ROUTING": "adaptive",
        "TTFT_SLO_MS": "500",
        "TPOT_SLO_MS": "15",
        "STEP_PROFILE": named.format(folder=tmp_path),
        "FIRST_TOKEN": "prefill",
    }
    assert wanted.items() <= planned.variables.items()
    text = env_text(read_plan(path), tmp_path)
    assert all(f"{name}={value}" in text.splitlines() for name, value in wanted.items())
    assert "One of 2 cells" in text


@pytest.mark.parametrize(("order", "writer"), [(Order.AT_ONCE, "decode"), (Order.HAND_OFF, "prefill")])
def test_variables_say_who_writes_the_first_token(order: Order, writer: str, tmp_path: Path) -> None:
    lines = env_text(read_plan(written_plan(tmp_path, 1, 1, 1, P2P, order=order)), tmp_path).splitlines()

    assert f"FIRST_TOKEN={writer}" in lines
    assert "DECODE_ASKED=at_once" in lines


@pytest.mark.parametrize(("longest", "own", "told"), [(8192, None, None), (8193, None, 8193), (300, 4096, 4096)])
def test_engines_take_the_longest_request(longest: int, own: int | None, told: int | None, tmp_path: Path) -> None:
    plan = read_plan(written_plan(tmp_path, 1, 1, 1, P2P, order=Order.HAND_OFF))
    plan = msgspec.structs.replace(plan, longest=longest, engine=EngineLimits(100_000, 64, max_model_len=own))

    assert deploy.variables(plan, tmp_path).get("MAX_MODEL_LEN") == (told and str(told))
    values = yaml.safe_load(values_text(plan))
    assert values["engine"].get("maxModelLen") == told
    chart.render(values)


def test_connectors_without_a_choice_get_none(tmp_path: Path) -> None:
    assert "FIRST_TOKEN" not in env_text(read_plan(written_plan(tmp_path, 1, 1, 1, NIXL)), tmp_path)


def test_decode_engines_listen_behind_the_last_prefill_engine(tmp_path: Path) -> None:
    assert "DECODE_HTTP_PORT" not in env_text(read_plan(written_plan(tmp_path, 2, 1, 1, P2P)), tmp_path)

    lines = env_text(read_plan(written_plan(tmp_path, 12, 1, 1, P2P)), tmp_path).splitlines()

    assert {"DECODE_HTTP_PORT=20015", "DECODE_KV_PORT=22201"} <= set(lines)


def test_usual_ports_are_those_of_the_settings() -> None:
    usual = ControlSettings()

    assert (usual.prefill_http_port, usual.prefill_kv_port) == (deploy.PREFILL_HTTP, deploy.PREFILL_KV)
    assert (usual.decode_http_port, usual.decode_kv_port) == (deploy.DECODE_HTTP, deploy.DECODE_KV)
