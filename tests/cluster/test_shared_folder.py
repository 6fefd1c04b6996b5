"""Engines of one node that hand each other GPU memory: a descriptor goes from container to container through a socket in a shared folder.

P2pConnector's own code does it in the chart's pods, with memory files in the place of GPU memory (support/vmm_engine.py). What is tried is the
way: containers with no namespace in common, a user without rights, one folder in both.
"""

import subprocess
from pathlib import Path

import pytest
from support.chart import FULLNAME, ROOT, Values
from support.cluster import images
from support.cluster.changes import kill_process
from support.cluster.cluster import eventually
from support.cluster.release import Release, example, merged
from support.monitor import build_library

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TAG = "vmm"
RECIPE = """
FROM python:3.11-slim
COPY libcuda.so.1 /usr/lib/x86_64-linux-gnu/
COPY . /opt/
ENV PYTHONPATH=/opt
ENTRYPOINT ["python3", "-m", "pd_engine"]
CMD ["start"]
"""
CONNECTOR = ROOT / "services/connector/src"
README = (ROOT / "k8s/README.md").read_text()
ENGINE = ROOT / "tests/support/vmm_engine.py"
# The first example, for nodes that have no RuntimeClass and nobody who provides volumes.
TOGETHER: Values = merged(
    example("1p1d"),
    {
        "images": {"engineTag": TAG},
        "gpu": {"runtimeClassName": ""},
        "model": {"download": False, "volume": {"type": "emptyDir"}},
        "monitor": {"enabled": False},
        "engine": {"drainSeconds": 0, "terminationGracePeriodSeconds": 1},
    },
)
# Where each engine is: pod and container.
PLACES = {
    "pod": {"prefill": ("engines-0", "prefill-0"), "decode": ("engines-0", "decode-0")},
    "separate": {"prefill": ("prefill-0", "prefill"), "decode": ("decode-0", "decode")},
}


@pytest.fixture(name="ready", scope="module")
def _ready(release: Release, boards: None, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A node with two GPUs, and images of both engines."""
    library = build_library(tmp_path_factory.mktemp("cuda"), "fake_cuda.c", "libcuda.so.1")
    sources = {str(path.relative_to(CONNECTOR)): path.read_bytes() for path in CONNECTOR.rglob("*.py")}
    files = {**sources, "pd_engine.py": ENGINE.read_bytes(), library.name: library.read_bytes()}
    for role in ("prefill", "decode"):
        images.derived(role, TAG, RECIPE, files)
    return release


def folder_of_the_node(release: Release, name: str) -> Path:
    """As k8s/README.md has it made."""
    folder = release.cluster.plane.folder / name
    subprocess.run(["install", "-d", "-o", "10001", "-m", "700", str(folder)], check=True)
    assert "install -d -o 10001 -m 700 " in README
    return folder


@pytest.mark.parametrize("topology", ["pod", "separate"])
def test_decode_reads_in_its_own_memory_what_prefill_wrote_there_and_knows_when_prefill_is_gone(
    ready: Release, topology: str
) -> None:
    apart: Values = {"engine": {"topology": "separate", "kvSocketFolder": str(folder_of_the_node(ready, topology))}}
    ready.install(merged(TOGETHER, apart if topology == "separate" else {}))
    places = PLACES[topology]

    def said(role: str) -> list[str]:
        pod, container = places[role]
        return ready.kubectl("logs", f"{FULLNAME}-{pod}", "-c", container, check=False).splitlines()

    eventually(lambda: said("decode") == ["keys and values"], 90, "the memory's descriptor came through the folder")
    assert said("prefill")[-1] == "sent"

    kill_process(ready, *places["prefill"])
    again = ["keys and values", "prefill-0 has let go", "keys and values"]
    eventually(lambda: said("decode") == again, 60, "the next prefill gets the memory when the last one has let go")


def test_a_folder_that_is_not_on_the_node_keeps_engines_from_starting_and_the_reason_is_in_the_readme(
    ready: Release,
) -> None:
    absent = ready.cluster.plane.folder / "absent"
    ready.install(merged(TOGETHER, {"engine": {"topology": "separate", "kvSocketFolder": str(absent)}}))

    def told() -> str:
        return " ".join(ready.events(f"{FULLNAME}-decode-0"))

    eventually(lambda: f"hostPath type check failed: {absent} is not a directory" in told(), 60, "the kubelet says why")
    assert "hostPath type check failed" in README
