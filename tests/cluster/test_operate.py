"""What k8s/README.md has operators do with a release that runs, on one of simulated engines."""

import base64
from pathlib import Path

import pytest
from support.chart import FULLNAME, RELEASE, Values
from support.cluster import images
from support.cluster.changes import proxies, states
from support.cluster.cluster import eventually
from support.cluster.release import Release, example, merged, ready
from support.cluster.shell import blocks, follow

from pd_contracts.http_call import CallError, call
from pd_control.client import get

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

VALUES: Values = merged(
    example("sim"),
    {
        "engine": {"drainSeconds": 10, "terminationGracePeriodSeconds": 30},
        "monitor": {"enabled": False},
        "loadgen": {"enabled": False},
    },
)
PAGE: Values = {"loadgen": {"recordPower": False, "page": {"enabled": True, "workers": 1}}}


@pytest.fixture(name="installed", scope="module")
def _installed(release: Release) -> Release:
    release.install(VALUES)
    release.rolled_out("statefulset/prefill", "statefulset/decode", "deployment/proxy")
    return release


def state(release: Release, name: str) -> str:
    [found] = [instance for instance in release.stats()["instances"] if instance["name"] == name]
    return str(found["state"])


def admin_key(release: Release) -> str:
    found = release.kubectl("get", "secret", f"{FULLNAME}-admin", "--output=jsonpath={.data.admin-key}")
    return base64.b64decode(found).decode()


def test_an_engine_that_is_drained_by_hand_gets_no_requests_until_that_is_undone(installed: Release) -> None:
    path = f"{installed.url}/admin/instances/decode-0/drain"
    key = {"Authorization": f"Bearer {admin_key(installed)}"}

    assert call(path, "POST").status == 403
    assert call(path, "POST", headers=key).status == 200
    assert state(installed, "decode-0") == "draining"
    assert call(path, "DELETE", headers=key).status == 200
    eventually(lambda: state(installed, "decode-0") == "ready", 30, "it gets requests again")

    # The same from inside, as the table for debugging says.
    said = installed.kubectl("exec", f"{FULLNAME}-decode-0", "--", "python3", "-m", "pd_engine", "drain")
    assert state(installed, "decode-0") == "draining", said
    assert call(path, "DELETE", headers=key).status == 200
    eventually(lambda: state(installed, "decode-0") == "ready", 30, "it gets requests again")


def said_of(release: Release, pod: str) -> str:
    return "\n".join(release.events(f"{FULLNAME}-{pod}"))


# What the README says of the only engine of a role: the service has no endpoint then, and port-forwarding reaches the proxy.
UNDO = f"""
KEY=$(kubectl get secret {FULLNAME}-admin -o jsonpath='{{.data.admin-key}}' | base64 -d)
kubectl port-forward service/{FULLNAME}-proxy 10001 &
curl --fail --retry 5 --retry-connrefused -X DELETE -H "Authorization: Bearer $KEY" http://127.0.0.1:10001/admin/instances/decode-0/drain
"""


def closed(url: str) -> bool:
    """Whether a service has no endpoint."""
    try:
        call(f"{url}/stats", connect_timeout_s=2)
    except CallError:
        return True
    return False


def test_readiness_is_the_proxys_word_and_the_probe_says_it(installed: Release, tmp_path: Path) -> None:
    """Without its only decode the proxy is not ready, either."""
    path = f"{installed.url}/admin/instances/decode-0/drain"
    key = {"Authorization": f"Bearer {admin_key(installed)}"}
    probe = ("exec", f"{FULLNAME}-decode-0", "--", "python3", "-m", "pd_engine", "probe", "--admitted")

    installed.kubectl(*probe)
    assert call(path, "POST", headers=key).status == 200
    eventually(lambda: not ready(installed.pod("decode-0")), 60, "an engine without requests is not ready")
    assert "Unhealthy: Readiness probe failed: draining" in said_of(installed, "decode-0")
    with pytest.raises(RuntimeError, match="draining"):
        installed.kubectl(*probe)
    eventually(lambda: closed(installed.url), 60, "the proxy leaves its service")
    follow(installed, UNDO, tmp_path)
    installed.rolled_out("deployment/proxy", "statefulset/prefill", "statefulset/decode")
    assert states(installed.url).count("ready") == 2
    assert installed.restarts(installed.pod("decode-0")) == 0


def ready_since(release: Release) -> list[str]:
    """Since when each engine has been as ready as it is."""
    conditions = [item for role in ("prefill", "decode") for item in release.pod(f"{role}-0")["status"]["conditions"]]
    return [f"{item['status']} {item['lastTransitionTime']}" for item in conditions if item["type"] == "Ready"]


def test_engines_stay_ready_while_a_new_proxy_takes_the_place_of_the_old(installed: Release) -> None:
    before = ready_since(installed)
    assert [since.partition(" ")[0] for since in before] == ["True", "True"]

    installed.kubectl("rollout", "restart", f"deployment/{FULLNAME}-proxy")
    installed.rolled_out("deployment/proxy")
    eventually(lambda: states(installed.url).count("ready") == 2, 60, "the new proxy has both engines")

    assert ready_since(installed) == before


def test_a_value_adds_an_engine_and_takes_it_away(installed: Release) -> None:
    installed.install(merged(VALUES, {"decode": {"count": 2}}))
    installed.rolled_out("statefulset/decode")
    [proxy] = proxies(installed)
    eventually(lambda: states(proxy).count("ready") == 3, 60, "the proxy gives requests to the new one")

    installed.install(VALUES)
    eventually(lambda: len(installed.pods("decode")) == 1, 90, "its pod is gone")
    assert installed.complete("hello").status == 200


def test_the_page_for_loads_by_hand_answers_and_has_its_worker(installed: Release) -> None:
    installed.volume(f"{FULLNAME}-results")
    installed.install(merged(VALUES, PAGE))
    installed.rolled_out("deployment/loadgen-page", "deployment/loadgen-worker")
    service = installed.cluster.get(installed.namespace, "service", f"{FULLNAME}-loadgen")
    page = f"http://{service['spec']['clusterIP']}:8089"

    def told() -> str:
        return installed.kubectl("logs", f"deployment/{FULLNAME}-loadgen-page")

    assert b"<html" in get(page, 10).body
    eventually(lambda: "1 workers connected" in told(), 60, "the worker has joined")
    installed.install(VALUES)


def test_keys_as_the_readme_sets_them_shut_strangers_out_and_let_the_releases_own_tests_in(
    installed: Release, tmp_path: Path
) -> None:
    [block] = [found for found in blocks("From an empty GPU node to the first token") if "apiKeysSecret" in found]
    ours = f"{images.REPOSITORY},images.tag={images.TAG},images.pullPolicy=Never"
    kept = tmp_path / "key"
    # The rest of the block reads as it stands: $R is where the images are.
    follow(installed, f"{block.replace('1p1d.yaml', 'sim.yaml')}echo $one >{kept}\n", tmp_path, R=ours)
    installed.rolled_out("deployment/proxy")

    models = f"{installed.url}/v1/models"
    assert call(models).status == 401
    assert call(models, headers={"Authorization": "Bearer guessed"}).status == 401
    assert call(models, headers={"Authorization": f"Bearer {kept.read_text().strip()}"}).status == 200
    assert "Phase:          Succeeded" in installed.helm("test", RELEASE)
