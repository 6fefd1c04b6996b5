"""One node for all tests of a run, and releases of the chart on it."""

from collections.abc import Callable, Iterator

import pytest
from support.cluster import images
from support.cluster.cluster import Cluster, cluster, eventually, running
from support.cluster.network import INSIDE
from support.cluster.node import NAME
from support.cluster.programs import KUBELET, CannotRunError
from support.cluster.release import Release
from support.control_plane import process

MakeRelease = Callable[[], Release]


@pytest.fixture(name="node", scope="session")
def _node() -> Iterator[Cluster]:
    """A node, started for this run; skips where none can be had."""
    if (known := running()) is not None:
        yield known
        return
    try:
        with cluster() as made:
            yield made
    except CannotRunError as reason:
        pytest.skip(f"no Kubernetes node here: {reason}")


@pytest.fixture(name="services", scope="session")
def _services(node: Cluster) -> Iterator[None]:
    """Images of everything but vLLM."""
    for name in images.SERVICES:
        images.service(name)
    yield
    images.remove()


@pytest.fixture(name="release", scope="module")
def _release(node: Cluster, services: None, request: pytest.FixtureRequest) -> Iterator[Release]:
    """An empty namespace called after the test's module."""
    namespace = str(request.module.__name__).rpartition(".")[2].removeprefix("test_").replace("_", "-")
    made = Release(node, namespace)
    node.kubectl("create", "namespace", namespace)
    yield made
    made.close()


@pytest.fixture(name="boards", scope="module")
def _boards(node: Cluster) -> Iterator[None]:
    """Two GPUs, as far as Kubernetes knows: a real device plugin that hands out what is no board."""
    folder = KUBELET / "plugins_registry"
    command = [*INSIDE, "env", f"PLUGIN_SOCK_DIR={folder}", node.programs["device-plugin"]]
    with process(command, node.plane.folder / "device-plugin.log"):
        eventually(lambda: _allocatable(node) == "2", 60, "the node offers what the device plugin has")
        yield


def _allocatable(node: Cluster) -> str:
    found = node.plane.ask("GET", f"/api/v1/nodes/{NAME}")["status"]["allocatable"]
    return str(found.get("nvidia.com/gpu", "0"))
