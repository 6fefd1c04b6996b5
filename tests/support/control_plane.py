"""A real Kubernetes API server with its etcd and, where there is one, its controllers. Without a node pods are made and never run.

`KUBEBUILDER_ASSETS` names the folder with the programs `etcd` and `kube-apiserver` (and `kube-controller-manager`), as other
projects' tests have it; without it whatever needs them is skipped. Any version does: what it does not serve is said.
A node to run pods on: support/cluster.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pd_contracts.free_ports import free_port, free_ports

Manifest = dict[str, Any]
ADMIN = "operator-of-the-test"


class Refused(Exception):  # noqa: N818  the server's word for it
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Site:
    """Where an API server runs, and for whom."""

    address: str = "127.0.0.1"
    # What commands begin with, to run in another network namespace.
    enter: tuple[str, ...] = ()
    services: str = "10.96.0.0/16"
    # As elsewhere where no controller makes the accounts' tokens.
    server: tuple[str, ...] = ("--disable-admission-plugins", "ServiceAccount")


@dataclass
class ControlPlane:
    """A running API server; the administrator's token is `ADMIN`."""

    folder: Path
    port: int
    site: Site = Site()
    resources: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://{self.site.address}:{self.port}"

    @property
    def account_key(self) -> Path:
        """Signs the tokens of ServiceAccounts."""
        return self.folder / "account.key"

    @property
    def authority(self) -> Path:
        """Its certificate, which signs itself."""
        return self.folder / "certs/apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def ask(
        self, method: str, path: str, body: Any = None, token: str = ADMIN, content_type: str = "application/json"
    ) -> Any:
        """One request; the answer's JSON.

        Raises:
            Refused: for an error status.
        """
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        trust = ssl.create_default_context(cafile=str(self.authority))
        try:
            with urllib.request.urlopen(request, timeout=20, context=trust) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode(errors="replace")[:2000]) from None

    def serves(self, manifest: Manifest) -> bool:
        """Whether it knows this kind in this version of its API."""
        return (manifest["apiVersion"], manifest["kind"]) in self.resources

    def accept(self, manifest: Manifest, namespace: str) -> Manifest:
        """Create it without storing it: defaults, validation and admission; newer servers refuse unknown fields, too."""
        name, namespaced = self.resources[manifest["apiVersion"], manifest["kind"]]
        place = f"/namespaces/{namespace}" if namespaced else ""
        path = f"{_group(manifest['apiVersion'])}{place}/{name}?dryRun=All&fieldValidation=Strict"
        metadata = {**manifest["metadata"], "namespace": namespace}
        answer: Manifest = self.ask("POST", path, {**manifest, "metadata": metadata})
        return answer

    def namespace(self, name: str) -> str:
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def token_of(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount, as the kubelet gets them."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
        answer = self.ask("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", body)
        return str(answer["status"]["token"])


def _group(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def assets(*programs: str) -> Path:
    """The folder with these programs; skips without."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nowhere"))
    missing = [program for program in programs if not os.access(folder / program, os.X_OK)]
    if missing or shutil.which("openssl") is None:
        pytest.skip(f"no Kubernetes API server here: KUBEBUILDER_ASSETS names no folder with {' and '.join(programs)}")
    return folder


@contextlib.contextmanager
def control_plane(folder: Path, programs: Path | None = None, site: Site | None = None) -> Iterator[ControlPlane]:
    """Start etcd and the API server on free ports; they end with the block."""
    programs = programs or assets("etcd", "kube-apiserver")
    client, peer, port = free_ports(3)
    plane = ControlPlane(folder, port, site or Site())
    key = str(plane.account_key)
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60)
    (folder / "tokens").write_text(f'{ADMIN},admin,1,"system:masters"\n')
    etcd = [*plane.site.enter, programs / "etcd", *_etcd(folder, client, peer)]
    server = [*plane.site.enter, programs / "kube-apiserver", *_server(plane, client)]
    with process(etcd, folder / "etcd.log"), process(server, folder / "apiserver.log") as running:
        _wait(lambda: _ready(plane, running))
        plane.resources.update(_resources(plane))
        plane.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(plane)))
        yield plane


def _etcd(folder: Path, client: int, peer: int) -> list[Any]:
    here = f"http://127.0.0.1:{client}"
    options = ["--data-dir", folder / "etcd", "--unsafe-no-fsync"]
    options += ["--listen-client-urls", here, "--advertise-client-urls", here]
    return [*options, "--listen-peer-urls", f"http://127.0.0.1:{peer}"]


def _server(plane: ControlPlane, etcd: int) -> list[Any]:
    key, site = plane.account_key, plane.site
    options = ["--etcd-servers", f"http://127.0.0.1:{etcd}", "--cert-dir", plane.folder / "certs"]
    options += ["--bind-address", site.address, "--secure-port", str(plane.port)]
    options += ["--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key]
    options += ["--service-account-signing-key-file", key, "--token-auth-file", plane.folder / "tokens"]
    return [*options, "--authorization-mode", "RBAC", "--service-cluster-ip-range", site.services, *site.server]


@contextlib.contextmanager
def controllers(plane: ControlPlane) -> Iterator[None]:
    """Run what makes pods of sets and endpoints of services; skips where there is no such program."""
    programs = assets("kube-controller-manager")
    port = free_port()
    command = [programs / "kube-controller-manager", "--kubeconfig", plane.kubeconfig, "--leader-elect=false"]
    command += ["--controllers", "statefulset,deployment,replicaset,endpointslice", "--secure-port", str(port)]
    command += ["--bind-address", "127.0.0.1", "--cert-dir", plane.folder / "controllers"]
    with process(command, plane.folder / "controllers.log"):
        yield


@contextlib.contextmanager
def process(command: list[Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the end of the block, with what it says in a file."""
    with log.open("wb") as output:
        # It ends with this process even if that is killed.
        whole = ["setpriv", "--pdeathsig", "TERM", "--", *(str(part) for part in command)]
        running = subprocess.Popen(whole, stdout=output, stderr=output)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _ready(plane: ControlPlane, running: subprocess.Popen[bytes]) -> bool:
    assert running.poll() is None, (plane.folder / "apiserver.log").read_text()[-2000:]
    try:
        plane.ask("GET", "/api/v1/namespaces/default")
        # RBAC's own roles are made a moment later.
        plane.ask("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:basic-user")
    except (OSError, Refused):
        return False
    return True


def _wait(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.2)


def _resources(plane: ControlPlane) -> Iterator[tuple[tuple[str, str], tuple[str, bool]]]:
    groups = plane.ask("GET", "/apis")["groups"]
    versions = ["v1", *(version["groupVersion"] for group in groups for version in group["versions"])]
    for version in versions:
        for resource in plane.ask("GET", _group(version))["resources"]:
            if "/" not in resource["name"]:
                yield (version, resource["kind"]), (resource["name"], resource["namespaced"])


def _kubeconfig(plane: ControlPlane) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": plane.url, "certificate-authority": str(plane.authority)}}],
        "users": [{"name": "u", "user": {"token": ADMIN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
