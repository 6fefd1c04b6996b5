"""A node with two GPUs, as far as Kubernetes knows: a real device plugin that hands out what is no board, and NVML's own functions
beside it. Engines are stand-ins that say what they were started with: what is tried is scheduling, the pod-resources socket and ports."""

import pytest
from support.chart import FULLNAME, ROOT, Values
from support.cluster import images
from support.cluster.changes import kill_process
from support.cluster.cluster import Cluster, eventually
from support.cluster.node import NAME
from support.cluster.release import Release, example, merged
from support.monitor import build_fake_nvml

from pd_control.client import ClientError, get

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TAG = "gpu"
ENGINE = b"""
import os, signal, sys, time
if sys.argv[1:] == ["start"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("KV ports", os.environ["PREFILL_KV_PORT"], os.environ["DECODE_KV_PORT"], flush=True)
    time.sleep(1e6)
"""
RECIPE = "FROM python:3.11-slim\nCOPY pd_engine.py /opt/\nENV PYTHONPATH=/opt\n"
MONITOR = f"FROM {images.REPOSITORY}/monitor:{images.TAG}\nCOPY libnvidia-ml.so.1 /usr/lib/x86_64-linux-gnu/\n"
VALUES: Values = merged(
    example("1p1d"),
    {
        "images": {"tag": TAG, "vllmVersion": "0.23.0"},
        "gpu": {"runtimeClassName": ""},
        "model": {"download": False, "volume": {"type": "emptyDir"}},
        "monitor": {"podResources": True, "nodeSelector": None},
        "engine": {"kvConnector": "P2pNcclConnector", "drainSeconds": 0},
    },
)


@pytest.fixture(name="installed", scope="module")
def _installed(release: Release, boards: None, tmp_path_factory: pytest.TempPathFactory) -> Release:
    for role in images.ROLES:
        images.derived(role, TAG, RECIPE, {"pd_engine.py": ENGINE})
    library = build_fake_nvml(tmp_path_factory.mktemp("nvml"))
    images.derived("monitor", TAG, MONITOR, {library.name: library.read_bytes()})
    images.derived("proxy", TAG, f"FROM {images.REPOSITORY}/proxy:{images.TAG}\n", {})
    release.install(VALUES)
    eventually(lambda: running(release) == {"prefill-0", "decode-0"}, 60, "both engines run")
    return release


def running(release: Release) -> set[str]:
    statuses = [item for pod in release.pods("engines") for item in pod["status"].get("containerStatuses", [])]
    return {status["name"] for status in statuses if "running" in status["state"]}


def test_each_container_of_the_engines_pod_has_one_gpu_of_its_own(installed: Release) -> None:
    def given(container: str) -> str:
        return installed.kubectl(
            "exec", f"{FULLNAME}-engines-0", "-c", container, "--", "sh", "-c", "ls /tmp | grep GPU"
        )

    assert {given("prefill-0").strip(), given("decode-0").strip()} == {"GPU-fake-0", "GPU-fake-1"}


def test_what_finds_no_free_gpu_is_pending_and_says_so(installed: Release, node: Cluster) -> None:
    node.kubectl("create", "namespace", "gpus-too")
    second = Release(node, "gpus-too")
    try:
        second.install(merged(VALUES, {"monitor": {"enabled": False}}))

        def reason() -> str:
            conditions = [item for pod in second.pods("engines") for item in pod["status"].get("conditions", [])]
            return " ".join(condition.get("message", "") for condition in conditions)

        eventually(lambda: "Insufficient nvidia.com/gpu" in reason(), 30, "the scheduler says why")
    finally:
        second.close()


def test_the_monitor_names_pod_container_and_role_of_each_gpu_by_the_kubelets_own_socket(installed: Release) -> None:
    def page() -> str:
        [pod] = installed.pods("monitor")
        try:
            return get(f"http://{pod['status'].get('podIP')}:9835/metrics", 5).body.decode()
        except ClientError:
            return ""

    def named() -> bool:
        lines = page().splitlines()
        return all(
            any(f'container="{role}-0"' in line and f'role="{role}"' in line for line in lines)
            for role in ("prefill", "decode")
        )

    eventually(named, 60, "both GPUs are named after their containers")
    assert f'pod="{FULLNAME}-engines-0"' in page()
    # The socket is root's: the monitor is root there, and can do nothing else that root can.
    [pod] = installed.pods("monitor")
    status = installed.kubectl("exec", pod["metadata"]["name"], "--", "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "Uid:\t0\t0\t0\t0" in status


def test_a_node_is_drained_with_the_options_that_the_readme_names(installed: Release) -> None:
    """Only tried: changes under load really drain the node."""
    options = "--ignore-daemonsets --delete-emptydir-data"
    assert f"kubectl drain NODE {options}" in (ROOT / "k8s/README.md").read_text()
    attempt = ("drain", NAME, "--dry-run=client")

    with pytest.raises(RuntimeError) as refused:
        installed.kubectl(*attempt)
    assert "use --ignore-daemonsets to ignore" in str(refused.value)
    assert "use --delete-emptydir-data to override" in str(refused.value)
    assert "drained (dry run)" in installed.kubectl(*attempt, *options.split())


def test_an_engine_that_starts_again_in_its_pod_takes_another_kv_port(installed: Release) -> None:
    pod = f"{FULLNAME}-engines-0"

    def said() -> str:
        return installed.kubectl("logs", pod, "-c", "decode-0", check=False).strip()

    assert said() == "KV ports 21001 22001"
    address = installed.pod("engines-0")["status"]["podIP"]
    kill_process(installed, "engines-0", "decode-0")
    eventually(lambda: said() == "KV ports 21001 22002", 60, "the kubelet has started it again, with the next port")
    assert installed.pod("engines-0")["status"]["podIP"] == address
    assert installed.kubectl("logs", pod, "-c", "prefill-0").strip() == "KV ports 21001 22001"

    installed.kubectl("delete", "pod", pod, "--grace-period=1")
    eventually(lambda: said() == "KV ports 21001 22001", 90, "a new pod begins with the first port, at another address")
    assert installed.pod("engines-0")["status"]["podIP"] != address
