"""k8s/README.md's way from an empty node to the first token, word for word."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.chart import CHART, FULLNAME, ROOT
from support.cluster import images
from support.cluster.cluster import Cluster
from support.cluster.network import INSIDE
from support.cluster.release import Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

HEADING = "## Without GPUs, from an empty node to the first token"
# What the reader's shell does when the reader leaves.
LEAVING = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"


def blocks() -> list[str]:
    """The commands of that section, one text a block."""
    section = (ROOT / "k8s/README.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture(name="reader")
def _reader(node: Cluster, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A namespace, which is the default one of the reader's kubeconfig."""
    made = Release(node, "readme")
    node.kubectl("create", "namespace", made.namespace)
    kept = {name for name in tagged() if images.there(name)}
    yield made
    made.close()
    for name in set(tagged()) - kept:
        subprocess.run(["docker", "rmi", name], capture_output=True, check=False, timeout=60)


def tagged() -> list[str]:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    return [f"pdstack/{name}:{version}" for name in (*images.SERVICES, *images.ROLES)]


def follow(reader: Release, block: str, folder: Path) -> str:
    """Run a block in a shell on the node, where its port is free; what it prints."""
    config = yaml.safe_load(reader.cluster.plane.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = reader.namespace
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    environment = reader.cluster.environment | {"KUBECONFIG": str(folder / "kubeconfig")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [*INSIDE, "bash", "-euo", "pipefail", "-c", LEAVING + block]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_with_the_simulator(reader: Release, tmp_path: Path) -> None:
    reader.volume(f"{FULLNAME}-results")
    said = follow(reader, blocks()[0], tmp_path)

    assert '"object":"text_completion"' in said
    assert "requests served" in said


def test_with_vllm_on_the_cpu(reader: Release, tmp_path: Path) -> None:
    if not images.there(images.VLLM_CPU):
        pytest.skip(f"{images.VLLM_CPU} is not here")
    said = follow(reader, blocks()[1], tmp_path)

    assert '"completion_tokens":16' in said
