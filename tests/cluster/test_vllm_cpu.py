"""Real vLLM engines on the CPU in pods of their own, KV from pod to pod, probed and restarted by a real kubelet."""

import random
import re
import subprocess
from pathlib import Path

import pytest
from support.answers import plain, streamed
from support.chart import FULLNAME, ROOT, Values
from support.cluster import images
from support.cluster.changes import kill_process
from support.cluster.cluster import eventually
from support.cluster.release import Release, merged

from pd_control.client import ClientError, get

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

OUTPUT_TOKENS = 12
BLOCK = 32  # tokens a KV block on the CPU; only whole blocks travel
TEXT = ROOT / "loadgen/src/pd_loadgen/data/text.txt"
ROLES = ("prefill", "decode", "combined")
PORTS = {"decode": 20005, "combined": 8000}

# The README's values for engines on CPUs, and a model that fits into a test.
VALUES: Values = {
    "images": {"vllmVersion": "0.32.0"},
    "model": {
        "name": "/models/tiny",
        "servedName": "tiny",
        "volume": {"type": "claim", "claim": "models", "readOnly": True},
    },
    "engine": {
        "device": "cpu",
        "topology": "separate",
        "kvConnector": "ExampleConnector",
        "kvClaim": "kv",
        "dtype": "float32",
        "maxModelLen": 2048,
        "sharedMemory": "512Mi",
        "startupSeconds": 600,
        "drainSeconds": 10,
        "terminationGracePeriodSeconds": 30,
    },
    "combined": {"count": 1},
}
CLAIMS = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
"""


@pytest.fixture(name="installed", scope="module")
def _installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    if not images.there(images.VLLM_CPU):
        pytest.skip(f"{images.VLLM_CPU} is not here")
    for role in images.ROLES:
        images.role(role)
    for claim in ("models", "kv"):
        folder = release.volume(claim, mode="ReadWriteMany")
        file = tmp_path_factory.mktemp("claim") / "claim.yaml"
        file.write_text(CLAIMS % claim)
        release.kubectl("apply", "--filename", str(file))
        if claim == "models":
            make_model(folder)
    release.install(VALUES)
    release.rolled_out(*(f"statefulset/{role}" for role in ROLES), "deployment/proxy", seconds=900)
    return release


def prompt(length: int) -> list[int]:
    """Of the tiny model's 1024 tokens."""
    generator = random.Random(length)
    return [generator.randrange(10, 1000) for _ in range(length)]


def make_model(folder: Path) -> None:
    """A few million random weights, written by the engines' own image."""
    command = ["docker", "run", "--rm", "--network", "none", "--env", "HOME=/tmp", "--entrypoint", "python3"]
    command += ["--volume", f"{folder}:/models", "--volume", f"{TEXT}:/text:ro", f"{images.REPOSITORY}/prefill:test"]
    command += ["-m", "pd_engine.tiny_model", "/models/tiny", "/text"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def engine(release: Release, role: str) -> str:
    return f"http://{release.pod(f'{role}-0')['status']['podIP']}:{PORTS[role]}"


def transferred(release: Release) -> float:
    """Prompt tokens that decode took from prefill's KV, by vLLM's own count."""
    text = get(f"{engine(release, 'decode')}/metrics", 30).body.decode()
    found = re.search(
        r'^vllm:prompt_tokens_by_source_total\{.*source="external_kv_transfer"\} (\S+)$', text, re.MULTILINE
    )
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("length", [1, 31, 33, 200, 700])
def test_two_pods_write_what_plain_vllm_writes(installed: Release, length: int) -> None:
    before = transferred(installed)
    tokens = prompt(length)
    right = plain(engine(installed, "combined"), "tiny", tokens, OUTPUT_TOKENS)

    assert plain(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    assert streamed(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    assert transferred(installed) - before == 2 * ((length - 1) // BLOCK * BLOCK)


def test_each_engine_started_once_and_was_ready_only_when_admitted(installed: Release) -> None:
    for role in ROLES:
        assert installed.restarts(installed.pod(f"{role}-0")) == 0
    assert [pair["canary"] for pair in installed.stats()["pairs"]] == ["passed"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_whose_process_died_comes_back_in_its_pod_and_the_pair_writes_the_same(
    installed: Release, role: str
) -> None:
    tokens = prompt(300)
    right = plain(engine(installed, "combined"), "tiny", tokens, OUTPUT_TOKENS)
    before = installed.pod(f"{role}-0")

    kill_process(installed, f"{role}-0", role)

    eventually(lambda: installed.restarts(installed.pod(f"{role}-0")) == 1, 60, "the kubelet starts it again")
    # A combined engine serves meanwhile.
    assert plain(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    installed.rolled_out(f"statefulset/{role}", seconds=600)
    eventually(lambda: paired(installed), 120, "the pair has passed its canary again")
    moved = transferred(installed)
    assert plain(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    assert transferred(installed) > moved
    assert installed.pod(f"{role}-0")["status"]["podIP"] == before["status"]["podIP"]


def paired(release: Release) -> bool:
    try:
        return any(pair["canary"] == "passed" for pair in release.stats()["pairs"])
    except ClientError:
        return False


def test_a_model_that_is_not_there_ends_the_engine_with_a_sentence(installed: Release) -> None:
    installed.install(merged(VALUES, {"model": {"name": "/models/absent"}}))

    def state() -> tuple[str, int]:
        [status] = installed.pod("combined-0")["status"].get("containerStatuses") or [{}]
        waits = status.get("state", {}).get("waiting", {}).get("reason", "")
        return waits, status.get("lastState", {}).get("terminated", {}).get("exitCode", 0)

    eventually(lambda: state() == ("CrashLoopBackOff", 2), 300, "the kubelet gives up for a while")
    said = installed.kubectl("logs", f"{FULLNAME}-combined-0", "--previous")
    assert re.search(r"^pd-engine: .*/models/absent", said, re.MULTILINE), said
