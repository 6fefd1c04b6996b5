"""k8s/README.md's way from an empty node to the first token, word for word."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.chart import CHART, FULLNAME
from support.cluster import images
from support.cluster.cluster import Cluster
from support.cluster.release import Release
from support.cluster.shell import blocks, follow

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

WITHOUT_GPUS = "Without GPUs, from an empty node to the first token"


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


def test_with_the_simulator(reader: Release, tmp_path: Path) -> None:
    reader.volume(f"{FULLNAME}-results")
    said = follow(reader, blocks(WITHOUT_GPUS)[0], tmp_path)

    assert '"object":"text_completion"' in said
    assert "requests served" in said


def test_with_vllm_on_the_cpu(reader: Release, tmp_path: Path) -> None:
    if not images.there(images.VLLM_CPU):
        pytest.skip(f"{images.VLLM_CPU} is not here")
    said = follow(reader, blocks(WITHOUT_GPUS)[1], tmp_path)

    assert '"completion_tokens":16' in said
