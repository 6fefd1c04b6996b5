"""The chart against a real API server. Without a node, objects are checked, stored, watched and created from each other, but no pod runs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.aio import until
from support.chart import CHART, EXAMPLES, FULLNAME, RELEASE, Values, helm, load, render
from support.control_plane import ControlPlane, Refused, control_plane, controllers
from support.kubernetes import account

import pd_proxy.discovery.kubernetes
from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping
from pd_proxy.discovery.kubernetes import KubernetesDiscovery
from pd_proxy.settings import Settings

pytestmark = pytest.mark.timeout(300)

# Kinds that operators bring.
NOT_EVERYWHERE = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}
# What became stable after some servers that are about, with the version in which these have the same.
BEFORE = {"policy/v1": "policy/v1beta1", "autoscaling/v2": "autoscaling/v2beta2"}


@pytest.fixture(name="plane", scope="module")
def _plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


def dry_run(plane: ControlPlane, values: Values, namespace: str) -> set[str]:
    """Offer everything without storing it; kinds that the server does not know."""
    unknown = set()
    for manifest in render(values):
        if not plane.serves(manifest):
            manifest["apiVersion"] = BEFORE.get(manifest["apiVersion"], manifest["apiVersion"])
        if plane.serves(manifest):
            plane.accept(manifest, namespace)
        else:
            unknown.add(manifest["kind"])
    return unknown


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_api_server_accepts_every_example(plane: ControlPlane, example: Path) -> None:
    assert dry_run(plane, load(example), "default") <= NOT_EVERYWHERE


def test_the_api_server_accepts_everything_at_once(plane: ControlPlane) -> None:
    values: Values = {
        "model": {"volume": {"type": "newClaim"}, "tokenSecret": "hf", "download": True},
        "proxy": {"discovery": "kubernetes", "apiKeysSecret": "clients", "pingNetworks": ["10.0.0.0/8"]},
        "gpu": {"extraResources": {"rdma/ib": 1}, "lockMemory": True, "perNode": 24},
        "prefill": {"count": 12},
        "decode": {"count": 12},
        "combined": {"count": 2},
        "ports": {"decodeHttp": 20105, "decodeKv": 23001},
        "monitor": {"enabled": True, "podResources": True},
        "loadgen": {"enabled": True, "page": {"enabled": True, "workers": 2}},
        "analysis": {"enabled": True},
        "networkPolicy": {"enabled": True, "clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "ingress": {"enabled": True, "host": "llm.example.org", "tlsSecret": "tls"},
    }

    assert dry_run(plane, values, "default") == set()


def test_the_api_server_accepts_plain_autoscalers_and_the_nodes_network(plane: ControlPlane) -> None:
    values: Values = {
        "engine": {"topology": "separate"},
        "decode": {"count": 3},
        "autoscaling": {"enabled": True, "by": "hpa", "decode": {"tokenSeconds": 0.0125}},
        "network": {"hostNetwork": True, "interface": "eth0"},
        "networkPolicy": {"enabled": False},
        "placement": {"engines": "spread"},
    }

    assert dry_run(plane, values, "default") == set()


def test_a_wrong_object_would_have_been_refused(plane: ControlPlane) -> None:
    [deployment] = [item for item in render() if item["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"] = "a-name-that-is-too-long"

    with pytest.raises(Refused, match="must be no more than 15 characters"):
        plane.accept(deployment, "default")


# --- helm --------------------------------------------------------------------------------------------------------------------


def run_helm(plane: ControlPlane, namespace: str, *arguments: str, values: Values | None = None) -> str:
    own = ["--kubeconfig", str(plane.kubeconfig), "--namespace", namespace]
    result = helm(*arguments, *own, values=values)
    assert result.returncode == 0, result.stderr
    return result.stdout


def get(plane: ControlPlane, namespace: str, path: str) -> Any:
    group, kind_and_name = path.rsplit(" ", 1)
    return plane.ask("GET", f"{group}/namespaces/{namespace}/{kind_and_name}")


def test_an_upgrade_keeps_the_admin_key_and_changes_what_was_asked_for(plane: ControlPlane) -> None:
    namespace = plane.namespace("upgraded")

    def upgrade(command: str, **values: Any) -> tuple[str, dict[str, Any]]:
        run_helm(plane, namespace, command, RELEASE, str(CHART), values=values)
        secret = get(plane, namespace, f"/api/v1 secrets/{FULLNAME}-admin")
        return secret["data"]["admin-key"], get(plane, namespace, f"/apis/apps/v1 statefulsets/{FULLNAME}-engines")

    first, before = upgrade("install")
    second, after = upgrade("upgrade", decode={"count": 2}, images={"tag": "2"}, engine={"drainSeconds": 20})

    assert first == second
    assert len(before["spec"]["template"]["spec"]["containers"]) == 2
    containers = after["spec"]["template"]["spec"]["containers"]
    assert [container["image"] for container in containers] == [
        "pdstack/prefill:2",
        "pdstack/decode:2",
        "pdstack/decode:2",
    ]
    run_helm(plane, namespace, "rollback", RELEASE, "1")
    assert get(plane, namespace, f"/api/v1 secrets/{FULLNAME}-admin")["data"]["admin-key"] == first


def test_a_rollback_finds_the_claims_that_an_upgrade_had_no_use_for(plane: ControlPlane) -> None:
    """Values of the claims are gone with their use; what was asked for then cannot be changed any more."""
    namespace = plane.namespace("rolled-back")
    claims: Values = {
        "model": {"volume": {"type": "newClaim", "size": "50Gi", "storageClass": "shared"}},
        "results": {"size": "20Gi", "storageClass": "fast"},
        "loadgen": {"enabled": True},
    }
    run_helm(plane, namespace, "install", RELEASE, str(CHART), values=claims)

    def specs() -> dict[str, Any]:
        found = get(plane, namespace, "/api/v1 persistentvolumeclaims")["items"]
        return {claim["metadata"]["name"]: claim["spec"] for claim in found}

    before = specs()
    run_helm(plane, namespace, "upgrade", RELEASE, str(CHART), values={})
    run_helm(plane, namespace, "rollback", RELEASE, "1")
    run_helm(plane, namespace, "upgrade", RELEASE, str(CHART), values={"results": {"claim": "another"}})
    run_helm(plane, namespace, "rollback", RELEASE)

    assert sorted(before) == [f"{FULLNAME}-models", f"{FULLNAME}-results"]
    assert specs() == before


def test_uninstalling_leaves_claims_and_nothing_else(plane: ControlPlane) -> None:
    namespace = plane.namespace("uninstalled")
    values = {"model": {"volume": {"type": "newClaim"}}, "loadgen": {"enabled": True}}
    run_helm(plane, namespace, "install", RELEASE, str(CHART), values=values)
    run_helm(plane, namespace, "uninstall", RELEASE)

    claims = get(plane, namespace, "/api/v1 persistentvolumeclaims")["items"]
    assert {claim["metadata"]["name"] for claim in claims} == {f"{FULLNAME}-models", f"{FULLNAME}-results"}
    for kinds in ("/apis/apps/v1 statefulsets", "/apis/apps/v1 deployments", "/api/v1 secrets", "/api/v1 services"):
        names = [item["metadata"]["name"] for item in get(plane, namespace, kinds)["items"]]
        assert [name for name in names if name.startswith(FULLNAME)] == []


def test_budgets_and_autoscalers_are_made_in_the_version_that_the_server_has(plane: ControlPlane) -> None:
    namespace = plane.namespace("versions")
    values: Values = {
        "engine": {"topology": "separate"},
        "decode": {"count": 2},
        "autoscaling": {"enabled": True, "by": "hpa"},
    }
    run_helm(plane, namespace, "install", RELEASE, str(CHART), values=values)

    for group, kind in (("policy", "poddisruptionbudgets"), ("autoscaling", "horizontalpodautoscalers")):
        version = plane.ask("GET", f"/apis/{group}")["preferredVersion"]["groupVersion"]
        names = [item["metadata"]["name"] for item in get(plane, namespace, f"/apis/{version} {kind}")["items"]]
        assert f"{FULLNAME}-decode" in names


# --- the proxy's account and its discovery -----------------------------------------------------------------------------------


BY_API: Values = {
    "proxy": {"discovery": "kubernetes"},
    # Its KV ports move when a container starts again.
    "engine": {"kvConnector": "P2pNcclConnector", "tensorParallelSize": 2},
    "images": {"vllmVersion": "0.23.0"},
    "combined": {"count": 2},
}


@pytest.fixture(name="slices_api")
def _slices_api(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> str:
    """EndpointSlices' version there: v1 since Kubernetes 1.21, v1beta1 with the same fields before."""
    version = "v1" if ("discovery.k8s.io/v1", "EndpointSlice") in plane.resources else "v1beta1"
    path = f"/apis/discovery.k8s.io/{version}"
    monkeypatch.setattr(pd_proxy.discovery.kubernetes, "SLICES_API", path)
    return path


def test_the_proxys_account_may_look_at_engines_here_and_at_nothing_else(plane: ControlPlane, slices_api: str) -> None:
    namespace = plane.namespace("allowed")
    run_helm(plane, namespace, "install", RELEASE, str(CHART), values=BY_API)
    token = plane.token_of(namespace, f"{FULLNAME}-proxy")

    for path in (f"{slices_api}/namespaces/{namespace}/endpointslices", f"/api/v1/namespaces/{namespace}/pods"):
        assert "items" in plane.ask("GET", path, token=token)
    for path in (
        f"/api/v1/namespaces/{namespace}/secrets",
        f"/api/v1/namespaces/{namespace}/pods/{FULLNAME}-engines-0",
        "/api/v1/namespaces/default/pods",
        "/api/v1/nodes",
    ):
        with pytest.raises(Refused) as refused:
            plane.ask("GET", path, token=token)
        assert refused.value.status == 403
    engines = plane.token_of(namespace, FULLNAME)
    with pytest.raises(Refused):
        plane.ask("GET", f"/api/v1/namespaces/{namespace}/pods", token=engines)


class Kubelet:
    """Says of pods what a node and the scheduler would."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        plane.ask("POST", "/api/v1/nodes", {"metadata": {"name": "node-1"}})

    def pods(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._plane.ask("GET", self._path)["items"]
        return [item for item in items if "pdstack/engine" in item["metadata"].get("labels", {})]

    def bind(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        target = {"kind": "Node", "name": "node-1"}
        self._plane.ask("POST", f"{self._path}/{name}/binding", {"metadata": {"name": name}, "target": target})

    def run(self, pod: dict[str, Any], address: str, restarts: int = 0) -> None:
        containers = [
            {"name": c["name"], "restartCount": restarts, "ready": False, "image": "", "imageID": ""}
            for c in pod["spec"]["containers"]
        ]
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "containerStatuses": containers,
            "conditions": [{"type": "Ready", "status": "False"}],
        }
        path = f"{self._path}/{pod['metadata']['name']}/status"
        self._plane.ask("PATCH", path, {"status": status}, content_type="application/merge-patch+json")


async def test_the_proxy_finds_what_controllers_make_of_the_release(
    plane: ControlPlane, slices_api: str, tmp_path: Path
) -> None:
    namespace = plane.namespace("found")
    run_helm(plane, namespace, "install", RELEASE, str(CHART), values=BY_API)
    folder = account(tmp_path / "account", plane.token_of(namespace, f"{FULLNAME}-proxy"), plane.authority)
    settings = Settings(
        kubernetes_service_host="127.0.0.1",
        kubernetes_service_port=plane.port,
        service_account_dir=str(folder),
        discovery_namespace=namespace,
        discovery_selector=f"app.kubernetes.io/name=pdstack,app.kubernetes.io/instance={RELEASE}",
    )
    heard: dict[str, Ping] = {}
    discovery = KubernetesDiscovery(
        settings, lambda said: heard.update({said.ping.http_address: said.ping}), print, 0.5
    )
    kubelet = Kubelet(plane, namespace)
    with controllers(plane):
        running = asyncio.create_task(discovery.run())
        try:
            await until(lambda: len(kubelet.pods()) == 3, 60)
            addresses = {pod["metadata"]["name"]: f"10.1.0.{index}" for index, pod in enumerate(kubelet.pods(), 1)}
            for pod in kubelet.pods():
                kubelet.bind(pod)
                kubelet.run(pod, addresses[pod["metadata"]["name"]])
            await until(lambda: len(heard) == 4, 60)
            shared = addresses[f"{FULLNAME}-engines-0"]
            prefill, decode = heard[f"{shared}:20003"], heard[f"{shared}:20005"]
            assert (prefill.type.role, prefill.zmq_address) == (Role.PREFILL, f"{shared}:21001")
            assert (decode.type.role, decode.zmq_address) == (Role.DECODE, f"{shared}:22001")
            assert (prefill.connector, prefill.engine) == (Connector.P2P_NCCL, "vllm")
            assert [ping.type.role for ping in heard.values()].count(Role.COMBINED) == 2

            [pod] = [pod for pod in kubelet.pods() if pod["metadata"]["name"].endswith("-engines-0")]
            kubelet.run(pod, shared, restarts=3)
            await until(lambda: heard[f"{shared}:20003"].boot_id == f"{pod['metadata']['uid']}.3", 30)
            assert heard[f"{shared}:20003"].zmq_address == f"{shared}:21007"

            heard.clear()
            plane.ask("DELETE", f"/api/v1/namespaces/{namespace}/pods/{FULLNAME}-combined-1?gracePeriodSeconds=0")
            gone = f"{addresses[f'{FULLNAME}-combined-1']}:8000"
            await asyncio.sleep(2)
            heard.clear()
            await until(lambda: len(heard) == 3, 30)
            assert gone not in heard
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
