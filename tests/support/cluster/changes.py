"""Changes by operators, and failures, of a release under load: one action each, and the state that must follow."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from support.chart import FULLNAME, RELEASE, Manifest
from support.cluster.cluster import eventually
from support.cluster.load import asking
from support.cluster.node import NAME
from support.cluster.release import PROXY_PORT, Release, example, merged, ready
from support.rolling import Result

from pd_control.client import ClientError, get

# Two engines of a role, so that one can go; drains longer than the longest answer.
VALUES: Final = merged(
    example("sim"),
    {
        "engine": {"drainSeconds": 10, "terminationGracePeriodSeconds": 30, "stallSeconds": 15},
        "prefill": {"count": 2},
        "decode": {"count": 2, "resources": {"limits": {"memory": "256Mi"}}},
        "proxy": {"drainSeconds": 10},
        "monitor": {"enabled": False},
        "loadgen": {"enabled": False},
    },
)
ROLES: Final = ("prefill", "decode")
# A connection that ended without a byte of an answer.
UNANSWERED: Final = ("reset", "unread")


@dataclass(frozen=True)
class Change:
    """Something that is done to the release while clients ask.

    Attributes:
        does: returns when what it asked for has happened.
        planned: it goes through the API, so that preStop runs and no stream needs to break.
        outage: for some time nobody takes requests, because there is one proxy or one node.
        proxies: how many there are.
        kills_proxy: the connections that a proxy holds end with it.
    """

    does: Callable[[Release], None]
    planned: bool = True
    outage: bool = False
    proxies: int = 1
    kills_proxy: bool = False


@dataclass(frozen=True)
class Seen:
    """What clients saw of a change. Every request is counted once.

    Attributes:
        cut: their connection ended before an answer, or within it.
        result: everything; what is cut counts there as turned away or lost.
    """

    result: Result
    cut: int = 0

    @classmethod
    def of(cls, result: Result, change: Change) -> "Seen":
        """A client cannot know whether a proxy that was killed had taken its request, so each connection that ended counts."""
        if not change.kills_proxy:
            return cls(result)
        outcomes = result.tally.outcomes
        return cls(result, cut=sum(outcomes[how] for how in ("broken", *UNANSWERED)))

    @property
    def turned_away(self) -> int:
        if not self.cut:
            return self.result.turned_away
        return self.result.turned_away - sum(self.result.tally.outcomes[how] for how in UNANSWERED)

    @property
    def lost(self) -> int:
        return self.result.lost - (self.result.tally.outcomes["broken"] if self.cut else 0)

    def row(self, name: str) -> str:
        """Of the page's table."""
        answered = self.result.tally.outcomes["answered"]
        cells = (name, answered, self.result.told, self.turned_away, self.cut, self.lost, self.result.kv_left)
        return f"| {' | '.join(map(str, cells))} |"


def settled(release: Release) -> None:
    """Every engine is ready for Kubernetes and at every proxy."""
    release.rolled_out(*(f"statefulset/{role}" for role in ROLES), "deployment/proxy", seconds=240)
    eventually(lambda: all_ready(release), 90, "every proxy gives requests to all four engines")


def all_ready(release: Release) -> bool:
    found = [states(address) for address in proxies(release)]
    return bool(found) and all(known.count("ready") == 4 for known in found)


def proxies(release: Release) -> list[str]:
    """The addresses of those that stay."""
    return [f"http://{pod['status'].get('podIP')}:{PROXY_PORT}" for pod in _staying(release)]


def _staying(release: Release) -> list[Manifest]:
    """Pods of proxies, without those that are being deleted."""
    return [pod for pod in release.pods("proxy") if "deletionTimestamp" not in pod["metadata"]]


def states(url: str) -> list[str]:
    """What a proxy makes of each engine; of those that are gone for some minutes, too."""
    try:
        return [instance["state"] for instance in get(f"{url}/stats", 10).json()["instances"]]
    except ClientError:
        return []


def run(release: Release, change: Change) -> Seen:
    """Do it to a release that is well, under load, and wait until it is well again."""
    if len(proxies(release)) != change.proxies:
        release.install(merged(VALUES, {"proxy": {"replicas": change.proxies}}))
    settled(release)
    with asking(release) as results:
        change.does(release)
        settled(release)
    return Seen.of(results[0], change)


def _delete(pod: str) -> Callable[[Release], None]:
    def delete(release: Release) -> None:
        release.kubectl("delete", "pod", f"{FULLNAME}-{pod}")

    return delete


def _delete_proxy(release: Release) -> None:
    release.kubectl("delete", "pod", _staying(release)[0]["metadata"]["name"])


def _kill_proxy(release: Release) -> None:
    """Its container starts again in its pod."""
    pod = str(_staying(release)[0]["metadata"]["name"]).removeprefix(f"{FULLNAME}-")
    _restarted_by(pod, lambda it: kill_process(it, pod, "proxy"))(release)


def _restart(what: str) -> Callable[[Release], None]:
    def restart(release: Release) -> None:
        kind, name = what.split("/")
        release.kubectl("rollout", "restart", f"{kind}/{FULLNAME}-{name}")
        release.rolled_out(what, seconds=240)

    return restart


def _upgrade_and_roll_back(release: Release) -> None:
    steps: list[Callable[[], object]] = [
        lambda: release.install(merged(VALUES, {"engine": {"maxNumSeqs": 128}})),
        lambda: _roll_back(release),
    ]
    for step in steps:
        step()
        release.rolled_out(*(f"statefulset/{role}" for role in ROLES), seconds=300)


def _roll_back(release: Release) -> None:
    release.helm("rollback", RELEASE)


def _drain(release: Release) -> None:
    """There is nowhere else to go, so the budgets must keep one engine of a role where it is, and one of several proxies."""
    kept = dict.fromkeys(ROLES, 1) | ({"proxy": 1} if len(proxies(release)) > 1 else {})
    try:
        release.kubectl("drain", NAME, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=30s")
    except RuntimeError as refusal:
        if "violate the pod's disruption budget" not in str(refusal):
            raise
        running = {part: len([pod for pod in release.pods(part) if ready(pod)]) for part in kept}
        if running != kept:
            msg = f"the budgets should have kept {kept}: {running}"
            raise AssertionError(msg) from refusal
    else:
        msg = "the budgets let everything go"
        raise AssertionError(msg)
    finally:
        release.kubectl("uncordon", NAME)


def kill_process(release: Release, pod: str, container: str) -> None:
    """End the process 1 of a container, as a crash does."""
    [status] = [item for item in release.pod(pod)["status"]["containerStatuses"] if item["name"] == container]
    command = ["docker", "inspect", "--format", "{{.State.Pid}}", status["containerID"].removeprefix("docker://")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    subprocess.run(["kill", "-KILL", shown.stdout.strip()], check=True)


def _restarted_by(pod: str, does: Callable[[Release], None]) -> Callable[[Release], None]:
    """Wait until the kubelet has started the container again."""

    def act(release: Release) -> None:
        before = release.restarts(release.pod(pod))
        does(release)
        eventually(lambda: release.restarts(release.pod(pod)) > before, 120, f"{pod} is started again")

    return act


def _kill(pod: str) -> Callable[[Release], None]:
    def kill(release: Release) -> None:
        kill_process(release, pod, pod.partition("-")[0])

    return kill


def _fill_memory(pod: str) -> Callable[[Release], None]:
    """Many small processes and shared memory fill the container, and its largest process pays: the engine."""

    def fill(release: Release) -> None:
        holds = "head -c 25m /dev/zero | tail -c 25m | sleep 20 &"
        script = f"head -c 60m /dev/zero > /dev/shm/full; for i in 1 2 3 4 5 6 7 8; do {holds} done; wait"
        release.kubectl("exec", f"{FULLNAME}-{pod}", "--", "sh", "-c", script, check=False)

    return fill


def _fault(pod: str, port: int, **faults: object) -> Callable[[Release], None]:
    def act(release: Release) -> None:
        script = (
            "import urllib.request as u; u.urlopen(u.Request("
            f"'http://127.0.0.1:{port}/sim/faults', data={json.dumps(faults).encode()!r}, method='POST'), timeout=5)"
        )
        release.kubectl("exec", f"{FULLNAME}-{pod}", "--", "python3", "-c", script)

    return act


CHANGES: Final[dict[str, Change]] = {
    "`kubectl delete pod`, a prefill": Change(_delete("prefill-0")),
    "`kubectl delete pod`, a decode": Change(_delete("decode-0")),
    "`kubectl delete pod`, the proxy": Change(_delete_proxy, outage=True),
    "`kubectl rollout restart`, both prefills": Change(_restart("statefulset/prefill")),
    "`kubectl rollout restart`, both decodes": Change(_restart("statefulset/decode")),
    "`kubectl rollout restart`, the proxy": Change(_restart("deployment/proxy"), outage=True),
    "`helm upgrade` that changes every engine, then `helm rollback`": Change(_upgrade_and_roll_back),
    "`kubectl drain` of the only node, then `uncordon`": Change(_drain, outage=True),
    "a decode's process dies": Change(_restarted_by("decode-1", _kill("decode-1")), planned=False),
    "a prefill's process dies": Change(_restarted_by("prefill-1", _kill("prefill-1")), planned=False),
    "a decode is killed for its memory": Change(_restarted_by("decode-0", _fill_memory("decode-0")), planned=False),
    "a prefill answers nothing any more": Change(
        _restarted_by("prefill-0", _fault("prefill-0", 20003, hang=True)), planned=False
    ),
    "a decode computes nothing any more, and answers health checks": Change(
        _restarted_by("decode-0", _fault("decode-0", 20005, stall="after_first_token")), planned=False
    ),
    "two proxies: `kubectl delete pod`, one of them": Change(_delete_proxy, proxies=2),
    "two proxies: `kubectl rollout restart` of both": Change(_restart("deployment/proxy"), proxies=2),
    "two proxies: `kubectl drain` of the only node, then `uncordon`": Change(_drain, proxies=2),
    "two proxies: one's process dies": Change(_kill_proxy, planned=False, proxies=2, kills_proxy=True),
}
