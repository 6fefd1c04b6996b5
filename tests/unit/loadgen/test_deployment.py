"""What is known of the deployment, from file, proxy and command line."""

from pathlib import Path

import pytest

from pd_contracts.names import Connector, Role, Topology
from pd_contracts.records import Deployment, EngineInfo
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_loadgen.target.deployment import DeploymentError, describe, gpu_roles, read


def stats(*roles: Role, engine: str = "vllm", state: str = "ready") -> ProxyStats:
    instances = [
        InstanceStats(
            name=f"{role}-0", role=role, state=state, engine=engine, version="0.23.0", connector=Connector.P2P_NCCL
        )
        for role in roles
    ]
    return ProxyStats(ready=True, instances=instances, version="0.1.0")


def test_the_proxy_names_engines_and_topology() -> None:
    described = describe(None, stats(Role.PREFILL, Role.DECODE), label="a", simulated=False)

    assert described.topology is Topology.DISAGG
    assert described.label == "a"
    assert [(engine.name, engine.version) for engine in described.engines] == [
        ("prefill-0", "0.23.0"),
        ("decode-0", "0.23.0"),
    ]
    assert described.software == {"pd-proxy": "0.1.0"}
    assert not described.simulated


def test_plain_engines_are_combined() -> None:
    assert describe(None, stats(Role.COMBINED, Role.COMBINED), label="", simulated=False).topology is Topology.COMBINED


def test_without_a_proxy_nothing_is_claimed() -> None:
    assert describe(None, None, label="", simulated=False) == Deployment()


def test_a_lost_engine_takes_no_part() -> None:
    described = describe(None, stats(Role.PREFILL, Role.DECODE, state="lost"), label="", simulated=False)

    assert (described.engines, described.topology) == ([], None)


def test_the_file_goes_before_the_proxy_and_the_label_before_the_file() -> None:
    engines = [EngineInfo(name="c", role=Role.COMBINED, gpus=[0])]
    file = Deployment(topology=Topology.COMBINED, label="file", gpus=2, engines=engines, software={"docker": "29"})

    described = describe(file, stats(Role.PREFILL, Role.DECODE), label="hand", simulated=False)

    assert (described.topology, described.label, described.gpus, described.engines) == (
        Topology.COMBINED,
        "hand",
        2,
        engines,
    )
    assert described.software == {"pd-proxy": "0.1.0", "docker": "29"}


@pytest.mark.parametrize(
    ("file", "seen", "server_says"),
    [
        (Deployment(simulated=True), None, False),
        (None, stats(Role.COMBINED, engine="pd-simulator"), False),
        (None, None, True),
        (
            Deployment(engines=[EngineInfo(name="c", role=Role.COMBINED)]),
            stats(Role.COMBINED, engine="pd-simulator"),
            False,
        ),
    ],
)
def test_one_voice_is_enough_for_simulated(file: Deployment | None, seen: ProxyStats | None, server_says: bool) -> None:
    assert describe(file, seen, label="", simulated=server_says).simulated


def test_the_monitor_is_told_the_role_of_each_known_gpu() -> None:
    engines = [EngineInfo(name="p", role=Role.PREFILL, gpus=[0]), EngineInfo(name="d", role=Role.DECODE, gpus=[1, 2])]

    assert gpu_roles(Deployment(engines=engines)) == {"0": "prefill", "1": "decode", "2": "decode"}


def test_a_deployment_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{"topology": "disagg", "gpus": 2}')

    assert read(path) == Deployment(topology=Topology.DISAGG, gpus=2)


@pytest.mark.parametrize("content", [None, "{", '{"topology": "ring"}'])
def test_a_bad_deployment_file_is_refused_with_its_name(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "d.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(DeploymentError, match=r"d\.json"):
        read(path)
