"""The chart's NetworkPolicies, enforced: the release works with them, and other pods are blocked."""

import subprocess

import pytest
from support.chart import FULLNAME, RELEASE
from support.cluster.cluster import Cluster, eventually
from support.cluster.release import Release, example, merged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

VALUES = merged(example("sim"), {"loadgen": {"enabled": False}, "networkPolicy": {"scrapers": []}})
ASK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"
STRANGER = {
    "metadata": {"name": "stranger"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "python:3.11-slim", "command": ["sleep", "1000000"]}],
    },
}


@pytest.fixture(name="installed", scope="module")
def _installed(release: Release, node: Cluster) -> Release:
    """The release, and a pod of somebody else in its namespace."""
    release.install(VALUES)
    node.plane.ask("POST", f"/api/v1/namespaces/{release.namespace}/pods", STRANGER)
    release.rolled_out("statefulset/prefill", "statefulset/decode", "deployment/proxy", "deployment/monitor")
    release.kubectl("wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s")
    return release


def reaches(release: Release, pod: str, address: str, port: int) -> bool:
    try:
        release.kubectl("exec", pod, "--", "python3", "-c", ASK, address, str(port))
    except RuntimeError:
        return False
    return True


def test_behind_its_policies_the_release_serves_measures_and_passes_its_own_tests(installed: Release) -> None:
    assert installed.complete("hello").status == 200
    assert "Phase:          Succeeded" in installed.helm("test", RELEASE)


@pytest.mark.parametrize(
    ("component", "port"),
    [("prefill", 20003), ("prefill", 21001), ("decode", 20005), ("decode", 22001), ("proxy", 30001), ("monitor", 9835)],
)
def test_a_stranger_reaches_no_engine_no_kv_port_no_discovery_and_no_monitor(
    installed: Release, component: str, port: int
) -> None:
    [pod] = installed.pods(component)
    address = pod["status"]["podIP"]

    assert not reaches(installed, "stranger", address, port)
    # The port is open: who may, gets through.
    friend = "prefill" if component in {"decode", "proxy"} else "decode"
    source = installed.pods("proxy")[0]["metadata"]["name"] if component == "monitor" else f"{FULLNAME}-{friend}-0"
    assert reaches(installed, source, address, port)


def test_a_stranger_reaches_the_service_for_clients(installed: Release) -> None:
    assert reaches(installed, "stranger", f"{FULLNAME}-proxy", 10001)


def test_clients_may_be_limited_too(installed: Release) -> None:
    installed.install(
        merged(VALUES, {"networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"may": "ask"}}}]}})
    )
    eventually(lambda: not reaches(installed, "stranger", f"{FULLNAME}-proxy", 10001), 30, "the stranger is shut out")
    installed.kubectl("label", "pod", "stranger", "may=ask")
    eventually(lambda: reaches(installed, "stranger", f"{FULLNAME}-proxy", 10001), 30, "with the label it is let in")
    # The kubelet still reaches the proxy's probes: it is on the node.
    assert installed.pods("proxy")[0]["status"]["conditions"][1]["status"] == "True"


def test_outside_the_cluster_engines_are_closed(installed: Release) -> None:
    [pod] = installed.pods("decode")
    command = ["python3", "-c", ASK, pod["status"]["podIP"], "20005"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=30).returncode != 0
