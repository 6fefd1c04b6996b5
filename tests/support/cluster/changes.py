"""What operators and accidents do to a release, under load: one action each, and the state that it must return to."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from support.chart import FULLNAME, RELEASE, ROOT
from support.cluster.cluster import eventually
from support.cluster.load import CLIENTS, asking
from support.cluster.node import NAME
from support.cluster.release import Release, example, merged, ready
from support.rolling import Result

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


@dataclass(frozen=True)
class Change:
    """Something that is done to the release while clients ask.

    Attributes:
        does: returns when what it asked for has happened.
        planned: it goes through the API, so that preStop runs and no stream needs to break.
        outage: for some time nobody takes requests, because there is one proxy or one node.
    """

    does: Callable[[Release], None]
    planned: bool = True
    outage: bool = False


def settled(release: Release) -> None:
    """Every engine is ready at its proxy and for Kubernetes."""
    release.rolled_out(*(f"statefulset/{role}" for role in ROLES), "deployment/proxy", seconds=240)
    eventually(lambda: states(release).count("ready") == 4, 90, "the proxy gives requests to all four engines")


def states(release: Release) -> list[str]:
    """What the proxy makes of each engine; of those that are gone for some minutes, too."""
    return [instance["state"] for instance in release.stats()["instances"]]


def run(release: Release, change: Change) -> Result:
    """Do it to a release that is well, under load, and wait until it is well again."""
    settled(release)
    with asking(release) as results:
        change.does(release)
        settled(release)
    return results[0]


def _delete(pod: str) -> Callable[[Release], None]:
    def delete(release: Release) -> None:
        release.kubectl("delete", "pod", f"{FULLNAME}-{pod}")

    return delete


def _delete_proxy(release: Release) -> None:
    [pod] = release.pods("proxy")
    release.kubectl("delete", "pod", pod["metadata"]["name"])


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
    """There is nowhere else to go, so the budgets must keep one engine of a role where it is."""
    try:
        release.kubectl("drain", NAME, "--delete-emptydir-data", "--timeout=30s")
    except RuntimeError as refusal:
        if "violate the pod's disruption budget" not in str(refusal):
            raise
        running = {role: len([pod for pod in release.pods(role) if ready(pod)]) for role in ROLES}
        if running != dict.fromkeys(ROLES, 1):
            msg = f"one engine of each role should be left: {running}"
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
}

PAGE: Final = ROOT / "docs/kubernetes.md"
HEAD: Final = f"""# What clients see when something happens to a release

Written by `python docs/write_kubernetes.py` on one real Kubernetes node ([tests/cluster](../tests/cluster)): two simulated prefill and two simulated decode engines in pods of their own, P2pNcclConnector, {CLIENTS} clients that ask without pause for answers of up to 3 s.
Every answer is compared with what the model says when all is well.
`make cluster` repeats it and fails if a request is lost that could be saved.

- **Failed**: requests in progress that ended in an error: an event in a stream, 504 for an answer in one piece.
  Only a decode that ends, or stands still, without a word takes them with it.
- **Turned away**: attempts that no proxy accepted, because there was none to connect to, or it was about to stop (503).
  Each client tries again every 50 ms, so their number tells how long this lasted; no request was lost by it.
- **Lost**: all other requests without a correct answer.

| what happens | answered | failed | turned away | lost | KV left |
| --- | --- | --- | --- | --- | --- |
"""
TAIL: Final = """
What we learned:

- **One proxy is one pause.** Between the old proxy's last request and the new one's first there is a gap: the old one drains, the new one starts, hears its engines and tries each pair.
  Clients must try again on "connection refused" and 503, with a time limit for connecting: a node refuses only a few connections a second while a service has no endpoint, and drops the others.
- **Upgrades replace the proxy, deletions double it.** After `kubectl delete pod` or an eviction its successor starts while the old one drains.
- **A node's drain respects the budgets.** With two engines of a role, one is moved and the other stays until the first is back; on the only node that is never, and `kubectl drain` waits until its time-out, while the service goes on with half its engines, or pauses if the proxy was on that node.
- **An image that is missing stops an update at its first engine**; `helm rollback` mends it without a further command.
  The proxy's pod is taken away before its new image is known to be there.
- **preStop costs time, not requests.** Engines and proxy end within their grace; what cannot end in `engine.drainSeconds` ends with an error event.
- **Busy nodes start Python slowly.** Proxy and monitor have start-up probes for that; before, liveness ended a proxy that was still starting.
- **A new pod is a new engine to the proxy.** It has another address, so another name in `/stats` (`prefill-2` after `prefill-0` was deleted); the one before is listed as lost for ten minutes.
  A container that starts again in its pod keeps address and name.
- **A new proxy knows no engines.** For some seconds it answers "unknown" to engines that ask whether they are admitted.
  They keep the previous proxy's answer; otherwise every engine would be unready at once.
"""


def page(rows: Sequence[str]) -> str:
    """docs/kubernetes.md."""
    return HEAD + "\n".join(rows) + "\n" + TAIL
