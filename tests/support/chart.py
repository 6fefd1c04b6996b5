"""What `helm template` makes of the chart, as Python objects; helm comes from the development dependencies."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "k8s/chart"
EXAMPLES = sorted((ROOT / "k8s/examples").glob("*.yaml"))
RELEASE = "demo"
FULLNAME = "demo-pdstack"

Manifest = dict[str, Any]
Values = dict[str, Any]


def helm(*arguments: str, values: Values | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm, without the user's own helm settings; skips where there is none."""
    command = shutil.which("helm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if command is None:
        pytest.skip("no helm command: it is in the development dependencies (helm-binary), or install it")
    given = ["--values", "-"] if values is not None else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    return subprocess.run(
        [command, *arguments, *given],
        input=json.dumps(values) if values is not None else None,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def deep(*values: Values) -> Values:
    """Values over values, two levels deep."""
    merged: Values = {}
    for value in values:
        for key, item in value.items():
            merged[key] = {**merged[key], **item} if isinstance(item, dict) and key in merged else item
    return merged


def render(values: Values | None = None) -> list[Manifest]:
    """All objects of a release named `demo`, hooks too."""
    return yaml.safe_load(_rendered(json.dumps(values or {})))  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=256)
def _rendered(values: str) -> str:
    result = helm("template", RELEASE, str(CHART), "--namespace", "here", values=json.loads(values))
    assert result.returncode == 0, result.stderr
    return json.dumps([document for document in yaml.safe_load_all(result.stdout) if document])


def refusal(values: Values) -> str:
    """The sentence with which the chart refuses these values."""
    result = helm("template", RELEASE, str(CHART), values=values)
    assert result.returncode != 0, "the chart accepts what it should refuse"
    match = re.search(r"error calling fail: (.*)", result.stderr)
    return match[1] if match else result.stderr


def load(path: Path) -> Values:
    """An example's values."""
    values: Values = yaml.safe_load(path.read_text())
    return values


def of_kind(manifests: list[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    """The objects of one kind, or the one with this name (without the release's)."""
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    if name is None:
        return found
    return [manifest for manifest in found if manifest["metadata"]["name"] == f"{FULLNAME}-{name}"]


def the(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one object with this kind and name."""
    [manifest] = of_kind(manifests, kind, name)
    return manifest


def pod_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Every pod's spec by the name of what makes it."""
    specs = {}
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            specs[manifest["metadata"]["name"]] = manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            specs[manifest["metadata"]["name"]] = manifest["spec"]["template"]["spec"]
    return specs


def engines(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Every engine's container, "workload/container"."""
    return {
        f"{item['metadata']['name'].removeprefix(FULLNAME + '-')}/{container['name']}": container
        for item in of_kind(manifests, "StatefulSet")
        for container in item["spec"]["template"]["spec"]["containers"]
    }


def environment(container: Manifest) -> dict[str, str]:
    """Variables with a value of their own; those that the cluster fills in hold the field's path."""
    return {
        item["name"]: item["value"] if "value" in item else json.dumps(item["valueFrom"]) for item in container["env"]
    }


def run_command(container: Manifest, tmp_path: Path, program: str, **variables: str) -> dict[str, str]:
    """Run a container's shell command with a `program` that shows its environment, and /tmp in `tmp_path`."""
    shown = tmp_path / "environment"
    (tmp_path / program).write_text(f"#!/bin/sh\nenv > {shown}\n")
    (tmp_path / program).chmod(0o755)
    script = container["command"][-1].replace("/tmp/", f"{tmp_path}/")  # noqa: S108  the container's own
    own = {name: value for name, value in environment(container).items() if not value.startswith("{")}
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", script], env={**own, **variables, "PATH": path}, check=True, timeout=10)
    return dict(line.split("=", 1) for line in shown.read_text().splitlines())
