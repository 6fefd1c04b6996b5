"""Enforces NetworkPolicies on the node, as a network plugin would: ingress, by pods, namespaces and blocks of addresses, on TCP ports.

No plugin that enforces them can be installed from a package. What this one cannot express it refuses, so nothing is open unnoticed.
The node itself is always let in (the kubelet's probes), as with any plugin.
"""

import contextlib
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from support.cluster.network import INSIDE
from support.control_plane import ControlPlane, Refused

Thing = dict[str, Any]
CHAIN: Final = "PDSTACK-POLICY"
_PERIOD_S: Final = 0.5
_POLICIES: Final = "/apis/networking.k8s.io/v1/networkpolicies"


@contextlib.contextmanager
def policies(plane: ControlPlane) -> Iterator[None]:
    """Enforce what the API server has until the end of the block; changes follow within a second."""
    _restore(["*filter", f":{CHAIN} - [0:0]", f"-I FORWARD 1 -j {CHAIN}", "COMMIT"])
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(plane, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _follow(plane: ControlPlane, ended: threading.Event) -> None:
    before: list[str] = []
    while not ended.wait(_PERIOD_S):
        try:
            found = plane.ask("GET", _POLICIES)["items"]
            pods = plane.ask("GET", "/api/v1/pods")["items"]
            namespaces = plane.ask("GET", "/api/v1/namespaces")["items"]
        except (OSError, Refused):
            continue  # it is being stopped, or busy: the rules of before stand
        rules = rules_of(found, pods, namespaces)
        if rules != before:
            _restore(["*filter", f":{CHAIN} - [0:0]", f"-F {CHAIN}", *rules, "COMMIT"])
            before = rules


def _restore(lines: Iterable[str]) -> None:
    subprocess.run(
        [*INSIDE, "iptables-restore", "--noflush", "--wait"],
        input="\n".join(lines) + "\n",
        text=True,
        check=True,
        capture_output=True,
        timeout=30,
    )


def rules_of(policies: list[Thing], pods: list[Thing], namespaces: list[Thing]) -> list[str]:
    """Packet filter rules: a pod that no policy selects is open; one that some select gets what any of them lets in."""
    labels = {item["metadata"]["name"]: item["metadata"].get("labels", {}) for item in namespaces}
    living = [pod for pod in pods if pod["status"].get("podIP") and not pod["spec"].get("hostNetwork")]
    rules = [f"-A {CHAIN} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"]
    for pod in sorted(living, key=_address):
        chosen = [policy for policy in policies if _selects(policy, pod)]
        for policy in chosen:
            for entry in policy["spec"].get("ingress", []):
                rules += _accepted(entry, pod, policy["metadata"]["namespace"], living, labels)
        if chosen:
            rules.append(f"-A {CHAIN} -d {_address(pod)} -j DROP")
    return rules


def _accepted(
    entry: Thing, pod: Thing, namespace: str, pods: list[Thing], labels: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    sources = [""]
    if entry.get("from"):
        sources = [f"-s {source} " for peer in entry["from"] for source in _sources(peer, namespace, pods, labels)]
    ports = [""]
    if entry.get("ports"):
        ports = [f"-p tcp --dport {number} " for port in entry["ports"] for number in _numbers(port, pod)]
    for source in sources:
        for port in ports:
            yield f"-A {CHAIN} {source}-d {_address(pod)} {port}-j RETURN"


def _sources(peer: Thing, namespace: str, pods: list[Thing], labels: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    if "ipBlock" in peer:
        if peer["ipBlock"].get("except"):
            msg = "ipBlock.except is not enforced here"
            raise NotImplementedError(msg)
        yield peer["ipBlock"]["cidr"]
        return
    for pod in sorted(pods, key=_address):
        home = pod["metadata"]["namespace"]
        here = home == namespace
        if "namespaceSelector" in peer:
            here = _matches(peer["namespaceSelector"], labels.get(home, {}))
        if here and _matches(peer.get("podSelector", {}), pod["metadata"].get("labels", {})):
            yield _address(pod)


def _numbers(port: Thing, pod: Thing) -> Iterator[int]:
    """A named port is what the pod's containers call so: none, if they do not."""
    if port.get("protocol", "TCP") != "TCP" or "endPort" in port:
        msg = f"only single TCP ports are enforced here, not {port}"
        raise NotImplementedError(msg)
    if isinstance(port["port"], int):
        yield port["port"]
        return
    for container in pod["spec"]["containers"]:
        for own in container.get("ports", []):
            if own.get("name") == port["port"]:
                yield own["containerPort"]


def _selects(policy: Thing, pod: Thing) -> bool:
    if "Egress" in policy["spec"].get("policyTypes", []):
        msg = "egress is not enforced here"
        raise NotImplementedError(msg)
    same = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return same and _matches(policy["spec"]["podSelector"], pod["metadata"].get("labels", {}))


def _matches(selector: Thing, labels: Mapping[str, str]) -> bool:
    if selector.get("matchExpressions"):
        msg = "matchExpressions are not enforced here"
        raise NotImplementedError(msg)
    return bool(selector.get("matchLabels", {}).items() <= dict(labels).items())


def _address(pod: Thing) -> str:
    return str(pod["status"]["podIP"])
