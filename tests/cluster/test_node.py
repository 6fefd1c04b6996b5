"""The node itself: the properties of any pod, which the tests of the chart rely on."""

from collections.abc import Iterator

import pytest
from support.cluster.cluster import Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: plain, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: python:3.11-slim
      command: [python3, -m, http.server, "8000"]
      readinessProbe: {httpGet: {path: /, port: 8000}, periodSeconds: 1}
      volumeMounts: [{name: memory, mountPath: /memory}]
  volumes: [{name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: plain}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}
"""
LOOK = "import urllib.request as u; print(u.urlopen('http://web', timeout=5).status)"


@pytest.fixture(scope="module")
def web(node: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("pod") / "pod.yaml"
    file.write_text(POD)
    node.kubectl("create", "namespace", "plain")
    node.kubectl("apply", "--filename", str(file))
    yield
    node.kubectl("delete", "namespace", "plain", timeout=180)


def test_a_pod_is_scheduled_started_probed_and_reached_by_its_services_name(node: Cluster, web: None) -> None:
    node.kubectl("--namespace", "plain", "wait", "--for=condition=Ready", "pod/web-0", "--timeout=90s")

    def asked() -> bool:
        said = node.kubectl("--namespace", "plain", "exec", "web-0", "--", "python3", "-c", LOOK, check=False)
        return said.strip() == "200"

    eventually(asked, 30, "the pod reaches itself by its service's name")
    mounts = node.kubectl("--namespace", "plain", "exec", "web-0", "--", "cat", "/proc/mounts")
    assert "tmpfs /memory tmpfs" in mounts
    assert '"GET / HTTP/1.1" 200' in node.kubectl("--namespace", "plain", "logs", "web-0")
