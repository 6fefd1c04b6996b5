"""Several releases in one namespace, upgrades that concern one part, and what an uninstalled release leaves."""

import re
from pathlib import Path

import pytest
from support.chart import CHART, FULLNAME, RELEASE, Values
from support.cluster.cluster import eventually
from support.cluster.release import OURS, PROXY_PORT, Release, example, merged
from support.cluster.shell import follow

from pd_control.client import ClientError, get, post

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LONGEST = "a-second-release-whose-name-is-as-long-as-helm-allows"  # 53 characters
MODEL = "sim-llama3-8b"
VALUES: Values = merged(
    example("sim"),
    {
        "engine": {"drainSeconds": 5, "terminationGracePeriodSeconds": 20},
        "monitor": {"enabled": False},
        "loadgen": {"recordPower": False, "duration": 2, "warmup": 0},
    },
)
# What Kubernetes itself puts into every namespace, beside events.
OWN = ("serviceaccount/default", "secret/default-token-", "configmap/kube-root-ca.crt")


def service(release: Release, instance: str) -> str:
    """The address of one release's proxy."""
    labels = f"app.kubernetes.io/instance={instance},app.kubernetes.io/component=proxy"
    [found] = release.cluster.get(release.namespace, "services", f"--selector={labels}")
    return f"http://{found['spec']['clusterIP']}:{PROXY_PORT}"


def engines(url: str) -> list[tuple[str, str]]:
    """Role and state of each engine that a proxy knows."""
    try:
        return sorted((found["role"], found["state"]) for found in get(f"{url}/stats", 10).json()["instances"])
    except ClientError:
        return []


def answers(url: str) -> bool:
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
    return post(f"{url}/v1/completions", body, {}, 30).status == 200


def left(release: Release) -> set[str]:
    """Every object of the namespace that Kubernetes did not put there, as `kind/name`."""
    kinds = release.cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    found = release.kubectl("get", ",".join(kinds), "--ignore-not-found", "--output=name").split()
    return {name for name in found if not name.partition("/")[0].startswith("event") and not name.startswith(OWN)}


def uids(release: Release, *components: str) -> set[str]:
    """Of the first release's pods."""
    pods = [pod["metadata"] for component in components for pod in release.pods(component)]
    return {str(pod["uid"]) for pod in pods if str(pod["name"]).startswith(f"{FULLNAME}-")}


@pytest.fixture(name="two", scope="module")
def _two(release: Release) -> Release:
    """Both are installed; the first with a load, so that it has a claim."""
    release.volume(f"{FULLNAME}-results")
    release.install(VALUES)
    alone = merged(OURS, VALUES, {"loadgen": {"enabled": False}})
    release.helm("install", LONGEST, str(CHART), values=alone)
    for name in (RELEASE, LONGEST):
        eventually(
            lambda: engines(service(release, name)) == [("decode", "ready"), ("prefill", "ready")],  # noqa: B023
            180,
            f"the proxy of {name} has its own two engines",
        )
    return release


def test_two_releases_in_one_namespace_have_their_own_engines_and_serve(two: Release) -> None:
    for name in (RELEASE, LONGEST):
        assert answers(service(two, name))
        assert "Phase:          Succeeded" in two.helm("test", name)


def test_the_notes_lead_a_new_user_to_an_answer(two: Release, tmp_path: Path) -> None:
    notes = two.helm("get", "notes", RELEASE)
    commands = [line for line in notes.splitlines() if re.match(r"(  |    )\S", line)]
    said = follow(two, "\n".join(commands) + "\n", tmp_path)

    assert "Phase:          Succeeded" in said
    assert '"object":"text_completion"' in said
    assert "requests served" in said


@pytest.mark.parametrize(
    ("change", "replaced", "kept"),
    [
        ({"proxy": {"maxInFlight": 500}}, ("proxy",), ("prefill", "decode")),
        ({"decode": {"env": {"TZ": "UTC"}}}, ("decode",), ("prefill", "proxy")),
    ],
    ids=["the proxy's", "one role's"],
)
def test_an_upgrade_replaces_the_pods_whose_settings_changed_and_no_others(
    two: Release, change: Values, replaced: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    before, others = uids(two, *replaced), uids(two, *kept)
    two.install(merged(VALUES, change))

    eventually(lambda: not before & uids(two, *replaced), 120, f"{replaced} were replaced")
    two.rolled_out("deployment/proxy", "statefulset/prefill", "statefulset/decode")
    assert others <= uids(two, *kept)
    two.helm("rollback", RELEASE)
    two.rolled_out("deployment/proxy", "statefulset/prefill", "statefulset/decode")


def test_a_release_that_is_uninstalled_leaves_its_results_and_disturbs_no_other(two: Release) -> None:
    kept = {f"persistentvolumeclaim/{FULLNAME}-results"}
    two.helm("uninstall", RELEASE)
    eventually(lambda: {name for name in left(two) if FULLNAME in name} == kept, 120, "its pods have ended")
    assert answers(service(two, LONGEST))

    two.helm("uninstall", LONGEST)
    eventually(lambda: left(two) == kept, 120, "nothing but the claim is left")
