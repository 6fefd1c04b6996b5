"""Real vLLM engines on the CPU in pods of their own, KV from pod to pod, probed and restarted by a real kubelet."""

import re
import subprocess
from pathlib import Path

import pytest
from support.answers import plain, random_prompt, streamed
from support.chart import FULLNAME, ROOT, Values
from support.cluster import images
from support.cluster.changes import kill_process
from support.cluster.cluster import eventually
from support.cluster.release import Release, example, merged

from pd_control.client import ClientError, get

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

OUTPUT_TOKENS = 12
TEXT = ROOT / "loadgen/src/pd_loadgen/data/text.txt"
ROLES = ("prefill", "decode", "combined")
PORTS = {"prefill": 20003, "decode": 20005, "combined": 8000}

# The example for engines on CPUs, with P2pConnector over TCP; its model lies on a claim, so that engines start again sooner. When decode writes
# the first token, vLLM's own count of transferred tokens is exact: all of a prompt but its last one.
VALUES: Values = merged(
    example("cpu"),
    {
        "model": {"tiny": False, "volume": {"type": "claim", "claim": "models", "readOnly": True}},
        "engine": {"topology": "separate", "drainSeconds": 10, "terminationGracePeriodSeconds": 30},
        "proxy": {"firstToken": "decode"},
    },
)
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
"""


@pytest.fixture(name="installed", scope="module")
def _installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    if not images.there(images.VLLM_CPU):
        pytest.skip(f"{images.VLLM_CPU} is not here")
    for role in images.ROLES:
        images.role(role)
    folder = release.volume("models", mode="ReadWriteMany")
    file = tmp_path_factory.mktemp("claim") / "claim.yaml"
    file.write_text(CLAIM)
    release.kubectl("apply", "--filename", str(file))
    make_model(folder)
    release.install(VALUES)
    release.rolled_out(*(f"statefulset/{role}" for role in ROLES), "deployment/proxy", seconds=900)
    eventually(lambda: paired(release), 120, "the pair has passed its canary")
    return release


def make_model(folder: Path) -> None:
    """A few million random weights, written by the engines' own image."""
    command = ["docker", "run", "--rm", "--network", "none", "--env", "HOME=/tmp", "--entrypoint", "python3"]
    command += ["--volume", f"{folder}:/models", "--volume", f"{TEXT}:/text:ro", f"{images.REPOSITORY}/prefill:test"]
    command += ["-m", "pd_engine.tiny_model", "/models/tiny", "/text"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def engine(release: Release, role: str) -> str:
    return f"http://{release.pod(f'{role}-0')['status']['podIP']}:{PORTS[role]}"


def measured(release: Release, role: str, what: str) -> float:
    """One of an engine's measurements, by the beginning of its line."""
    text = get(f"{engine(release, role)}/metrics", 30).body.decode()
    found = re.search(rf"^{what}.*\}} (\S+)$", text, re.MULTILINE)
    assert found is not None, what
    return float(found[1])


def transferred(release: Release) -> float:
    """Prompt tokens that decode took from prefill's KV, by vLLM's own count."""
    return measured(release, "decode", r'vllm:prompt_tokens_by_source_total\{.*source="external_kv_transfer"')


@pytest.mark.parametrize("length", [1, 31, 33, 200, 700])
def test_two_pods_write_what_plain_vllm_writes(installed: Release, length: int) -> None:
    before = transferred(installed)
    tokens = random_prompt(length)
    right = plain(engine(installed, "combined"), "tiny", tokens, OUTPUT_TOKENS)

    assert plain(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    assert streamed(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    assert transferred(installed) - before == 2 * (length - 1)


def test_kv_went_from_pod_to_pod_over_tcp(installed: Release) -> None:
    for role in ("prefill", "decode"):
        assert measured(installed, role, r'pd_kv_peer_up\{.*transport="tcp"') == 1


def test_each_engine_started_once_and_was_ready_only_when_admitted(installed: Release) -> None:
    for role in ROLES:
        assert installed.restarts(installed.pod(f"{role}-0")) == 0
    assert [pair["canary"] for pair in installed.stats()["pairs"]] == ["passed"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_whose_process_died_comes_back_in_its_pod_and_the_pair_writes_the_same(
    installed: Release, role: str
) -> None:
    tokens = random_prompt(300)
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


def test_with_the_first_token_from_prefill_as_it_is_unless_set_two_pods_write_the_same(installed: Release) -> None:
    installed.install(merged(VALUES, {"proxy": {"firstToken": "prefill"}}))
    installed.rolled_out("deployment/proxy", seconds=300)
    eventually(lambda: paired(installed), 120, "the pair has passed the new proxy's canary")

    for length in (1, 33, 200):
        tokens = random_prompt(length)
        right = plain(engine(installed, "combined"), "tiny", tokens, OUTPUT_TOKENS)
        assert plain(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
        assert streamed(installed.url, "tiny", tokens, OUTPUT_TOKENS) == right
    assert installed.stats()["handed_off"] > 0


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
