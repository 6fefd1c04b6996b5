"""What is recorded about the deployment, from the proxy and the command line."""

from typing import Any

import pytest

from pd_contracts.deployment import DeployedEngine, DeploymentDocument, label_of, shape_of
from pd_contracts.names import Connector, Role, Topology
from pd_contracts.records import Deployment, EngineInfo
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_loadgen.target.deployment import describe, gpu_roles

NOTHING: dict[str, Any] = {"boards": {}, "label": "", "gpus": None, "simulated": False}


def stats(*roles: Role, engine: str = "vllm", state: str = "ready") -> ProxyStats:
    instances = [
        InstanceStats(
            name=f"{role}-0", role=role, state=state, engine=engine, version="0.23.0", connector=Connector.P2P_NCCL
        )
        for role in roles
    ]
    return ProxyStats(ready=True, instances=instances, version="0.1.0")


def document(*roles: Role, engine: str = "vllm", state: str = "ready", **changes: Any) -> DeploymentDocument:
    instances = [
        DeployedEngine(
            name=f"{role}-{number}",
            role=role,
            state=state,
            engine=engine,
            version="0.33.0",
            versions={"torch": "2.14.0"},
            models=["m", "adapter"],
            gpus=[f"GPU-{number}"],
            transport="vmm",
        )
        for number, role in enumerate(roles)
    ]
    fields = {
        "name": "mine",
        "shape": "",
        "ready": True,
        "simulated": False,
        "gpus": len(roles),
        "instances": instances,
    }
    return DeploymentDocument(**{**fields, **changes})


def test_a_deployment_describes_itself() -> None:
    told = document(Role.PREFILL, Role.DECODE, Role.DECODE)
    described = describe(told, stats(Role.PREFILL), **{**NOTHING, "boards": {"GPU-0": 4, "GPU-1": 0, "GPU-2": 1}})

    assert (described.name, described.topology, described.gpus) == ("mine", Topology.DISAGG, 3)
    assert described.label == "disagg 1P2D"
    assert [engine.gpus for engine in described.engines] == [[4], [0], [1]]
    assert described.engines[0] == EngineInfo(
        name="prefill-0",
        role=Role.PREFILL,
        engine="vllm",
        version="0.33.0",
        versions={"torch": "2.14.0"},
        model="m",
        transport="vmm",
        gpus=[4],
        gpu_uuids=["GPU-0"],
    )
    assert described.software == {"vllm": "0.33.0", "torch": "2.14.0", "pd-proxy": "0.1.0"}


def test_what_was_given_by_hand_counts_more() -> None:
    described = describe(document(Role.COMBINED), None, **{**NOTHING, "label": "hand", "gpus": 8})

    assert (described.label, described.gpus) == ("hand", 8)


@pytest.mark.parametrize(
    ("connector", "settings", "label"),
    [
        (None, {}, "1 combined"),
        (Connector.P2P, {}, "1 combined both roles"),
        (Connector.P2P, {"ROUTING": "adaptive", "TTFT_SLO_MS": "300"}, "1 combined adaptive"),
        (None, {"ROUTING": "local_first"}, "1 combined local_first without KV_BOTH"),
        (None, {"POLICY": "least_loaded"}, "1 combined"),
    ],
)
def test_combined_engines_that_serve_otherwise_than_plain_ones_are_named_so(
    connector: Connector | None, settings: dict[str, str], label: str
) -> None:
    engine = DeployedEngine(name="combined-0", role=Role.COMBINED, state="ready", connector=connector)

    described = describe(document(instances=[engine], settings=settings), None, **NOTHING)

    assert (described.label, described.settings) == (label, settings)


def test_fixed_roles_are_not_named_after_a_routing_that_leaves_them_alone() -> None:
    told = document(Role.PREFILL, Role.DECODE, settings={"ROUTING": "adaptive"})

    assert describe(told, None, **NOTHING).label == "disagg 1P1D"


def test_an_unknown_number_of_gpus_stays_unknown() -> None:
    assert describe(document(Role.COMBINED, gpus=None), None, **NOTHING).gpus is None


def test_versions_that_differ_are_all_told() -> None:
    (one,) = document(Role.COMBINED).instances
    mixed = document(
        instances=[one, DeployedEngine(name="c", role=Role.COMBINED, state="ready", engine="vllm", version="0.23.0")]
    )

    assert describe(mixed, None, **NOTHING).software["vllm"] == "0.33.0, 0.23.0"


def test_engines_that_do_not_announce_themselves_are_named_by_the_proxys_stats() -> None:
    described = describe(document(), stats(Role.PREFILL, Role.DECODE), **NOTHING)

    assert described.topology is Topology.DISAGG
    assert [(engine.name, engine.version) for engine in described.engines] == [
        ("prefill-0", "0.23.0"),
        ("decode-0", "0.23.0"),
    ]


def test_without_a_proxy_nothing_is_claimed() -> None:
    assert describe(None, None, **NOTHING) == Deployment()


@pytest.mark.parametrize("source", ["document", "stats"])
def test_a_lost_engine_takes_no_part(source: str) -> None:
    told = document(Role.COMBINED, state="lost") if source == "document" else None
    seen = stats(Role.COMBINED, state="lost") if source == "stats" else None

    described = describe(told, seen, **NOTHING)

    assert (described.engines, described.topology) == ([], None)


@pytest.mark.parametrize(
    ("told", "seen", "server_says"),
    [
        (document(Role.COMBINED, simulated=True), None, False),
        (document(Role.COMBINED, engine="pd-simulator"), None, False),
        (None, stats(Role.COMBINED, engine="pd-simulator"), False),
        (None, None, True),
    ],
)
def test_one_simulated_engine_makes_the_deployment_simulated(
    told: DeploymentDocument | None, seen: ProxyStats | None, server_says: bool
) -> None:
    assert describe(told, seen, **{**NOTHING, "simulated": server_says}).simulated


def test_the_monitor_is_told_the_role_of_each_known_gpu() -> None:
    engines = [EngineInfo(name="p", role=Role.PREFILL, gpus=[0]), EngineInfo(name="d", role=Role.DECODE, gpus=[1, 2])]

    assert gpu_roles(Deployment(engines=engines)) == {"0": "prefill", "1": "decode", "2": "decode"}


@pytest.mark.parametrize(
    ("roles", "shape", "label"),
    [
        ([], "", ""),
        ([Role.COMBINED] * 2, "2C", "2 combined"),
        ([Role.DECODE, Role.PREFILL, Role.DECODE], "1P2D", "disagg 1P2D"),
        ([Role.PREFILL, Role.DECODE, Role.COMBINED], "1P1D1C", "disagg 1P1D1C"),
    ],
)
def test_roles_have_a_shape_and_a_label(roles: list[Role], shape: str, label: str) -> None:
    assert (shape_of(roles), label_of(roles)) == (shape, label)
