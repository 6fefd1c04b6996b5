"""The messages of kubelet and scheduler about configurations that cannot work, which k8s/README.md names, and how to repair these."""

import threading
import time
from collections.abc import Iterator

import pytest
from support.chart import FULLNAME, RELEASE, ROOT, Manifest, Values
from support.cluster.changes import all_ready
from support.cluster.cluster import Cluster, eventually
from support.cluster.release import Release, example, merged

from pd_contracts.http_call import Reply
from pd_control.client import ClientError, get, post

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

README = (ROOT / "k8s/README.md").read_text()
QUIET: Values = {"monitor": {"enabled": False}, "loadgen": {"enabled": False}}
SIM: Values = merged(example("sim"), QUIET, {"engine": {"drainSeconds": 10, "terminationGracePeriodSeconds": 30}})


@pytest.fixture(name="fresh")
def _fresh(node: Cluster, services: None, request: pytest.FixtureRequest) -> Iterator[Release]:
    """An empty namespace for one test."""
    made = Release(node, f"failure-{abs(hash(request.node.name)) % 10_000_000}")
    node.kubectl("create", "namespace", made.namespace)
    yield made
    made.close()


def waiting(pod: Manifest) -> str:
    """Why a pod's first container waits."""
    [status, *_] = pod["status"].get("containerStatuses", [{"state": {}}])
    return str(status["state"].get("waiting", {}).get("reason", ""))


def unscheduled(pod: Manifest) -> str:
    """Why a pod is not scheduled."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition["message"])
    return ""


def cannot_pull(release: Release, component: str) -> None:
    """Wait until one of its pods says so."""
    eventually(
        lambda: {"ErrImagePull", "ImagePullBackOff"} & {waiting(pod) for pod in release.pods(component)},
        120,
        f"an image of {component} cannot be pulled",
    )


def serves(release: Release) -> bool:
    try:
        return release.complete("hello").status == 200
    except ClientError:
        return False


# The first example, for nodes that have no RuntimeClass and nobody who provides volumes.
BARE: Values = merged(
    example("1p1d"), {"gpu": {"runtimeClassName": ""}, "model": {"download": False, "volume": {"type": "emptyDir"}}}
)


def test_engines_without_a_gpu_node_are_pending_and_the_reason_is_in_the_readme(fresh: Release) -> None:
    fresh.install(BARE)

    def reasons() -> str:
        return " ".join(unscheduled(pod) for pod in fresh.pods("engines"))

    eventually(lambda: "Insufficient nvidia.com/gpu" in reasons(), 30, "the scheduler says why")
    assert "Insufficient nvidia.com/gpu" in README


def test_a_runtime_class_that_is_not_there_lets_no_engine_be_made_and_the_reason_is_in_the_readme(
    fresh: Release,
) -> None:
    fresh.install(merged(BARE, {"gpu": {"runtimeClassName": "nvidia"}}))

    def said() -> str:
        return " ".join(fresh.events(f"{FULLNAME}-engines"))

    eventually(lambda: 'RuntimeClass "nvidia" not found' in said(), 30, "the set says why it makes no pod")
    assert fresh.pods("engines") == []
    assert 'RuntimeClass "nvidia" not found' in README


def test_a_claim_that_nobody_provides_for_keeps_the_load_pending_and_the_service_runs(fresh: Release) -> None:
    fresh.install(merged(SIM, {"loadgen": {"enabled": True, "recordPower": False}}))
    fresh.ready()

    [pod] = fresh.pods("loadgen")
    assert "unbound immediate PersistentVolumeClaims" in unscheduled(pod)
    assert "unbound immediate PersistentVolumeClaims" in README
    [event, *_] = fresh.events(f"{FULLNAME}-results")
    assert "no persistent volumes available for this claim and no storage class is set" in event
    assert serves(fresh)


def test_a_claim_for_the_model_that_nobody_provides_for_keeps_engines_pending(fresh: Release) -> None:
    fresh.install(merged(example("cpu"), {"model": {"volume": {"type": "newClaim"}}}))

    def reasons() -> list[str]:
        return [unscheduled(pod) for part in ("engines", "combined") for pod in fresh.pods(part)]

    def all_wait() -> bool:
        return len(found := reasons()) == 2 and all("unbound immediate PersistentVolumeClaims" in it for it in found)

    eventually(all_wait, 30, "the scheduler says why")
    assert "model.volume.storageClass" in README


def test_an_image_that_cannot_be_pulled_stops_an_update_at_one_engine_and_rolling_back_mends_it(fresh: Release) -> None:
    two = merged(SIM, {"prefill": {"count": 2}, "decode": {"count": 2}})
    fresh.install(two)
    fresh.ready()
    fresh.rolled_out("statefulset/prefill", "statefulset/decode")

    fresh.install(merged(two, {"images": {"tag": "never-built", "pullPolicy": "IfNotPresent"}}))
    for role in ("prefill", "decode"):
        cannot_pull(fresh, role)
        assert [waiting(pod) for pod in fresh.pods(role)].count("") == 1, "the other engine of the role still runs"
    # The proxy is replaced, never doubled, so an update whose images are missing takes it away.
    cannot_pull(fresh, "proxy")

    fresh.helm("rollback", RELEASE)
    fresh.ready()
    fresh.rolled_out("statefulset/prefill", "statefulset/decode", seconds=180)
    eventually(lambda: all_ready(fresh), 60, "all engines are back")


def test_an_engine_that_never_gets_healthy_is_started_again_and_says_so(fresh: Release) -> None:
    fresh.install(merged(SIM, {"engine": {"startupSeconds": 20}, "decode": {"env": {"SIM_FAULTS": '{"hang": true}'}}}))

    eventually(lambda: fresh.restarts(fresh.pod("decode-0")) > 0, 120, "the start-up probe ends the engine")
    said = "\n".join(fresh.events(f"{FULLNAME}-decode-0"))
    assert "Startup probe failed" in said
    assert "failed startup probe, will be restarted" in said
    # The other role works, and waits for a partner.
    assert fresh.restarts(fresh.pod("prefill-0")) == 0
    eventually(
        lambda: any(
            line.startswith("Unhealthy: Readiness probe failed: joining")
            for line in fresh.events(f"{FULLNAME}-prefill-0")
        ),
        60,
        "the probe's message is the proxy's reason",
    )


def long_request(release: Release, tokens: int, into: list[Reply | ClientError]) -> threading.Thread:
    """Ask in a thread."""

    def ask() -> None:
        body = {"model": "sim-llama3-8b", "prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        try:
            into.append(post(f"{release.url}/v1/completions", body, {}, 120))
        except ClientError as error:
            into.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.parametrize(("drain_s", "whole"), [(30, True), (3, False)])
def test_prestop_waits_for_answers_as_long_as_was_said_and_the_pod_is_gone_within_its_grace(
    fresh: Release, drain_s: int, whole: bool
) -> None:
    grace = drain_s + 12
    fresh.install(merged(SIM, {"engine": {"drainSeconds": drain_s, "terminationGracePeriodSeconds": grace}}))
    fresh.ready()
    answers: list[Reply | ClientError] = []
    asked = long_request(fresh, 2000, answers)  # some 14 s
    eventually(
        lambda: b"vllm:num_requests_running" in metrics(fresh) and running(fresh) > 0, 30, "the answer has begun", 0.1
    )

    began = time.monotonic()
    fresh.kubectl("delete", "pod", f"{FULLNAME}-decode-0")
    took = time.monotonic() - began
    asked.join()

    [answer] = answers
    assert isinstance(answer, Reply)
    assert answer.status == 200
    ended = answer.body.rstrip().rpartition(b"\n")[2]
    if whole:
        assert ended == b"data: [DONE]"
        assert b'"error"' not in answer.body
    else:
        assert b'"error"' in answer.body, "what could not end in time ends with a word"
    assert took < grace + 15, "the kubelet did not have to wait for more than its grace, give or take its housekeeping"


def metrics(release: Release) -> bytes:
    return get(f"http://{release.pod('decode-0')['status']['podIP']}:20005/metrics", 5).body


def running(release: Release) -> float:
    lines = metrics(release).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running"))


def test_autoscalers_find_what_they_scale_and_say_that_nobody_measures(fresh: Release) -> None:
    fresh.install(merged(SIM, {"autoscaling": {"enabled": True, "by": "hpa"}}))

    def conditions() -> dict[str, str]:
        found = fresh.kubectl("get", "hpa", f"{FULLNAME}-decode", "--output=jsonpath={.metadata.annotations}")
        return {"all": found}

    eventually(lambda: "SucceededGetScale" in conditions()["all"], 90, "the autoscaler reads the engines' number")
    assert "no custom metrics API" in conditions()["all"] or "FailedGetPodsMetric" in conditions()["all"]
