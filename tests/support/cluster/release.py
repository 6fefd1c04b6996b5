"""A release of the chart on the node, as an operator installs and changes it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.chart import CHART, EXAMPLES, FULLNAME, RELEASE, Manifest, Values, helm, load
from support.cluster import images
from support.cluster.cluster import Cluster
from support.cluster.network import HOST

from pd_contracts.http_call import Reply
from pd_control.client import get, post

PROXY_PORT = 10001
# The images that were built here; tests look at engines as a Prometheus outside of the cluster would.
OURS: Values = {
    "images": {"repository": images.REPOSITORY, "tag": images.TAG, "pullPolicy": "Never"},
    "networkPolicy": {"scrapers": [{"ipBlock": {"cidr": f"{HOST}/32"}}]},
}


def example(name: str) -> Values:
    [path] = [path for path in EXAMPLES if path.stem == name]
    return load(path)


def merged(*values: Values) -> Values:
    """Values in which later ones win, key by key."""
    result: Values = {}
    for value in values:
        for key, item in value.items():
            known = result.get(key)
            result[key] = merged(known, item) if isinstance(known, dict) and isinstance(item, dict) else item
    return result


@dataclass(frozen=True)
class Release:
    """The release `demo` in a namespace of its own."""

    cluster: Cluster
    namespace: str

    def helm(self, *arguments: str, values: Values | None = None) -> str:
        """What helm prints.

        Raises:
            RuntimeError: with what it complains of.
        """
        place = ["--kubeconfig", str(self.cluster.plane.kubeconfig), "--namespace", self.namespace]
        result = helm(*arguments, *place, values=values)
        if result.returncode != 0:
            msg = f"helm {' '.join(arguments)}: {result.stderr}{result.stdout}"
            raise RuntimeError(msg)
        return result.stdout

    def install(self, values: Values) -> None:
        """`helm upgrade --install` with the images that were built here."""
        self.helm("upgrade", "--install", RELEASE, str(CHART), values=merged(OURS, values))

    def kubectl(self, *arguments: str, check: bool = True, timeout: float = 180) -> str:
        """kubectl in the release's namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, check=check, timeout=timeout)

    def pods(self, component: str) -> list[Manifest]:
        """The pods of one part, by name."""
        found = self.cluster.get(self.namespace, "pods", f"--selector=app.kubernetes.io/component={component}")
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def pod(self, name: str) -> Manifest:
        """One pod, by its name without the release's."""
        found: Manifest = self.cluster.get(self.namespace, "pod", f"{FULLNAME}-{name}")
        return found

    def events(self, about: str) -> list[str]:
        """`reason: message` of what happened to an object, oldest first."""
        found = self.cluster.get(self.namespace, "events", f"--field-selector=involvedObject.name={about}")
        return [f"{event['reason']}: {event['message']}" for event in sorted(found, key=_at)]

    def rolled_out(self, *kinds_and_names: str, seconds: int = 120) -> None:
        """Wait until these ("deployment/proxy") have what they were last told to have."""
        for what in kinds_and_names:
            kind, name = what.split("/")
            self.kubectl(
                "rollout", "status", f"{kind}/{FULLNAME}-{name}", f"--timeout={seconds}s", timeout=seconds + 30
            )

    def ready(self, seconds: int = 180) -> None:
        """Wait until the proxy serves."""
        self.rolled_out("deployment/proxy", seconds=seconds)

    @property
    def host(self) -> str:
        """The service's address, where clients go."""
        service = self.cluster.get(self.namespace, "service", f"{FULLNAME}-proxy")
        return str(service["spec"]["clusterIP"])

    @property
    def url(self) -> str:
        """The proxy, by its service."""
        return f"http://{self.host}:{PROXY_PORT}"

    def stats(self) -> Any:
        """What the proxy says of its engines."""
        return get(f"{self.url}/stats", 10).json()

    def complete(self, prompt: Sequence[int] | str, tokens: int = 8) -> Reply:
        """One answer, not streamed."""
        model = get(f"{self.url}/v1/models", 10).json()["data"][0]["id"]
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return post(f"{self.url}/v1/completions", body, {}, 60)

    def restarts(self, pod: Manifest) -> int:
        """How often its containers were started again."""
        return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))

    def volume(self, claim: str, size: str = "10Gi", mode: str = "ReadWriteOnce") -> Path:
        """A folder of the node for one claim of this namespace; this node provisions none by itself."""
        name = f"{self.namespace}-{claim}"
        folder = self.cluster.plane.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        volume = {
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": [mode],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": self.namespace, "name": claim},
                "hostPath": {"path": str(folder)},
            },
        }
        self.cluster.plane.ask("POST", "/api/v1/persistentvolumes", volume)
        return folder

    def close(self) -> None:
        """Remove the namespace with all that is in it, and wait until its pods have ended."""
        self.kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")
        self.cluster.kubectl("delete", "namespace", self.namespace, "--wait=true", timeout=180)
        for volume in self.cluster.plane.ask("GET", "/api/v1/persistentvolumes")["items"]:
            if volume["spec"].get("claimRef", {}).get("namespace") == self.namespace:
                self.cluster.plane.ask("DELETE", f"/api/v1/persistentvolumes/{volume['metadata']['name']}")


def _at(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def ready(pod: Manifest) -> bool:
    """Whether it takes part in its service."""
    conditions = pod["status"].get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def describe(pod: Manifest) -> str:
    """A pod's state, for messages."""
    return json.dumps(pod["status"].get("containerStatuses", pod["status"]))[:800]
