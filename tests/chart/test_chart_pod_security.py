"""The Pod Security level that a release's namespace must have: k8s/README.md's table against Kubernetes' own list of what a level refuses.

https://kubernetes.io/docs/concepts/security/pod-security-standards/

Monokle, which has these rules too, gives a second opinion: `npm install @monokle/validation` in a folder, and
`MONOKLE=FOLDER pytest tests/chart/test_chart_pod_security.py`.
"""

import copy
import json
import os
import re
import subprocess
from typing import Any

import pytest
from support.chart import EXAMPLES, ROOT, Manifest, Values, load, pod_specs, render

RESTRICTED_VOLUMES = {
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
# Capabilities that the baseline level lets a container add; the restricted one: NET_BIND_SERVICE only.
BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
HEAD = "| value | level | why |"
APART: Values = {"topology": "separate"}
ARRANGEMENTS: dict[str, list[Values]] = {
    "none of the following, every `engine.topology` and connector": [
        *(load(path) for path in EXAMPLES if path.stem != "multi-node"),
        {"engine": APART},
        {"engine": {"kvConnector": "NixlConnector"}},
        {"engine": {"kvConnector": "ExampleConnector", "kvClaim": "kv", **APART}},
        {"engine": {"kvConnector": "P2pNcclConnector"}, "images": {"vllmVersion": "0.23.0"}},
        {"monitor": {"enabled": True}, "loadgen": {"enabled": True, "page": {"enabled": True}}},
        {"proxy": {"replicas": 2, "apiKeysSecret": "clients"}, "analysis": {"enabled": True}},
    ],
    "`engine.kvSocketFolder`": [{"engine": {"kvSocketFolder": "/var/lib/pd-kv", **APART}}],
    "`model.volume.type: hostPath`": [{"model": {"volume": {"type": "hostPath", "path": "/data"}}}],
    "`monitor.podResources`": [{"monitor": {"enabled": True, "podResources": True}}],
    "`gpu.lockMemory`": [{"gpu": {"lockMemory": True}}, load(ROOT / "k8s/examples/multi-node.yaml")],
    "`network.hostNetwork`": [{"network": {"hostNetwork": True}, "networkPolicy": {"enabled": False}}],
}


def level(spec: Manifest) -> str:
    """The strictest level that lets a pod in."""
    if _beyond_baseline(spec):
        return "privileged"
    return "restricted" if _restricted(spec) else "baseline"


def _containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def _sources(spec: Manifest) -> set[str]:
    return {key for volume in spec.get("volumes", []) for key in volume if key != "name"}


def _added(spec: Manifest) -> set[str]:
    contexts = [container.get("securityContext", {}) for container in _containers(spec)]
    return {name for context in contexts for name in context.get("capabilities", {}).get("add", [])}


def _hooks(spec: Manifest) -> list[Manifest]:
    """What the kubelet asks or runs: probes, and hooks of the containers' lives."""
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    found = [container[probe] for container in _containers(spec) for probe in probes if probe in container]
    return found + [hook for container in _containers(spec) for hook in container.get("lifecycle", {}).values()]


def _beyond_baseline(spec: Manifest) -> bool:
    ports = [port for container in _containers(spec) for port in container.get("ports", [])]
    return (
        any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        or "hostPath" in _sources(spec)
        or any(port.get("hostPort") for port in ports)
        or any(container.get("securityContext", {}).get("privileged") for container in _containers(spec))
        or bool(_added(spec) - BASELINE_CAPABILITIES)
        # since Kubernetes 1.34
        or any(hook.get(how, {}).get("host") for hook in _hooks(spec) for how in ("httpGet", "tcpSocket"))
    )


def _restricted(spec: Manifest) -> bool:
    pod = spec.get("securityContext", {})
    contexts = [{**pod, **container.get("securityContext", {})} for container in _containers(spec)]
    return (
        _sources(spec) <= RESTRICTED_VOLUMES
        and _added(spec) <= {"NET_BIND_SERVICE"}
        and all(context.get("allowPrivilegeEscalation") is False for context in contexts)
        and all(context.get("runAsNonRoot") is True and context.get("runAsUser") != 0 for context in contexts)
        and all(context.get("seccompProfile", {}).get("type") == "RuntimeDefault" for context in contexts)
        and all("ALL" in context.get("capabilities", {}).get("drop", []) for context in contexts)
    )


def table() -> dict[str, str]:
    """Value to level, as the README says."""
    rows = (ROOT / "k8s/README.md").read_text().partition(HEAD)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"\s*\|\s*", row.strip().strip("|").strip()) for row in rows]
    return {value: needed for value, needed, _ in cells}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_readme_names_the_level_that_an_arrangement_needs(arrangement: str) -> None:
    for values in ARRANGEMENTS[arrangement]:
        levels = {level(spec) for spec in pod_specs(render(values)).values()}
        strictest_that_fits = max(levels, key=["restricted", "baseline", "privileged"].index)
        assert strictest_that_fits == table()[arrangement], values


def test_the_readmes_table_has_these_arrangements_and_no_other() -> None:
    assert list(table()) == list(ARRANGEMENTS)


def _with_what_containers_inherit(manifests: list[Manifest]) -> list[Manifest]:
    """Monokle looks for runAsNonRoot at containers alone; Kubernetes lets them have it from their pod."""
    manifests = copy.deepcopy(manifests)
    for spec in pod_specs(manifests).values():
        inherited = {"runAsNonRoot": spec["securityContext"]["runAsNonRoot"]}
        for container in _containers(spec):
            container["securityContext"] = inherited | container["securityContext"]
    return manifests


def monokle(folder: str) -> dict[str, set[str]]:
    """The strictest levels, by Monokle, of each arrangement's values."""
    values = [value for arrangement in ARRANGEMENTS.values() for value in arrangement]
    asked = json.dumps([_with_what_containers_inherit(render(value)) for value in values])
    command = ["node", str(ROOT / "tests/support/pod_security.mjs"), folder]
    said = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=120)
    answer: dict[str, Any] = json.loads(said.stdout)
    assert answer["rules"] >= 17, "all rules are on"
    broken = iter(answer["answers"])
    return {name: {_monokles_level(next(broken)) for _ in values} for name, values in ARRANGEMENTS.items()}


def _monokles_level(rules: list[str]) -> str:
    """PSS1…: a rule of the baseline level is broken; PSS2…: one of the restricted level."""
    if any(rule.startswith("PSS1") for rule in rules):
        return "privileged"
    return "baseline" if rules else "restricted"


def test_monokle_finds_the_same_levels() -> None:
    folder = os.environ.get("MONOKLE")
    if folder is None:
        pytest.skip("MONOKLE names no folder in which @monokle/validation is installed")
    assert monokle(folder) == {name: {needed} for name, needed in table().items()}
