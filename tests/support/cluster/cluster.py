"""A Kubernetes cluster of one node on this machine: set up from nothing, and removed without a trace."""

import contextlib
import fcntl
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from support.cluster.names import names
from support.cluster.network import INSIDE, NODE, SERVICES, network
from support.cluster.node import NAME, node
from support.cluster.policy import policies
from support.cluster.programs import CannotRunError, Programs, programs
from support.control_plane import ControlPlane, Refused, Site, control_plane, process
from support.waiting import until

# Names the folder of a cluster that runs, for tests that are started inside of `python tests/cluster`.
RUNNING: Final = "PDSTACK_CLUSTER"
LOCK: Final = Path("/run/pdstack-cluster.lock")
SITE: Final = Site(
    address=NODE,
    enter=INSIDE,
    services=SERVICES,
    server=("--allow-privileged", "--kubelet-preferred-address-types", "InternalIP"),
)


@dataclass(frozen=True)
class Cluster:
    """What an operator has: a kubeconfig and kubectl."""

    plane: ControlPlane
    programs: Programs

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.programs.folder}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, "KUBECONFIG": str(self.plane.kubeconfig), "PATH": path, RUNNING: str(self.plane.folder)}

    def kubectl(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """What kubectl prints.

        Raises:
            RuntimeError: with what it complains of, if it fails and `check`.
        """
        result = subprocess.run(
            ["kubectl", *arguments],
            env=self.environment,
            executable=self.programs["kubectl"],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and result.returncode != 0:
            msg = f"kubectl {' '.join(arguments)}: {result.stderr.strip()}"
            raise RuntimeError(msg)
        return result.stdout

    def get(self, namespace: str, *what: str) -> Any:
        """An object, or a list's items."""
        answer = json.loads(self.kubectl("get", "--namespace", namespace, "--output", "json", *what))
        return answer["items"] if answer["kind"] == "List" else answer


def eventually(condition: Callable[[], object], seconds: float, what: str, period_s: float = 0.5) -> None:
    """Wait for what a cluster does in its own time."""
    until(condition, seconds, what, period_s=period_s)


def running() -> Cluster | None:
    """The one that RUNNING names."""
    if RUNNING not in os.environ:
        return None
    folder = Path(os.environ[RUNNING])
    config = yaml.safe_load((folder / "kubeconfig").read_text())
    port = urlsplit(config["clusters"][0]["cluster"]["server"]).port
    return Cluster(ControlPlane(folder, port or 0, SITE), programs())


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start everything; it ends with the block, and takes its containers, mounts, interfaces and control groups with it.

    Raises:
        CannotRunError: if this machine cannot run a node.
    """
    built = programs()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pdstack-cluster-")))
        # Pods' volumes lie in it, and their users must get there.
        folder.chmod(0o755)
        stack.enter_context(network(folder))
        plane = stack.enter_context(control_plane(folder, built.folder, SITE))
        for command in (_controllers(plane, built), _scheduler(plane, built)):
            stack.enter_context(process(command, folder / f"{Path(command[len(INSIDE)]).name}.log"))
        stack.enter_context(names(plane))
        stack.enter_context(node(plane, built))
        stack.enter_context(policies(plane))
        made = Cluster(plane, built)
        eventually(lambda: _ready(made), 120, f"the node is ready (its log is in {folder}/kubelet.log)")
        yield made


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """There is one node to a machine."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = "another one of these tests runs here"
            raise CannotRunError(msg) from None
        yield


def _controllers(plane: ControlPlane, built: Programs) -> list[Any]:
    command = [*INSIDE, built["kube-controller-manager"], "--kubeconfig", plane.kubeconfig, "--leader-elect=false"]
    command += ["--service-account-private-key-file", plane.account_key, "--root-ca-file", plane.authority]
    return [*command, "--cert-dir", plane.folder / "controllers", "--bind-address", "127.0.0.1"]


def _scheduler(plane: ControlPlane, built: Programs) -> list[Any]:
    command = [*INSIDE, built["kube-scheduler"], "--kubeconfig", plane.kubeconfig, "--leader-elect=false"]
    return [*command, "--cert-dir", plane.folder / "scheduler", "--bind-address", "127.0.0.1"]


def _ready(made: Cluster) -> bool:
    try:
        found = made.plane.ask("GET", f"/api/v1/nodes/{NAME}")
        made.plane.ask("GET", "/api/v1/namespaces/default/serviceaccounts/default")
    except (Refused, OSError):
        return False
    return {"type": "Ready", "status": "True"}.items() <= _condition(found, "Ready").items()


def _condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = thing["status"].get("conditions", [])
    return next((condition for condition in found if condition["type"] == kind), {})
