"""`helm install` of the sim example: scheduled, probed, measured, reported."""

import json
from pathlib import Path

import pytest
from support.chart import FULLNAME, RELEASE, Manifest
from support.cluster.cluster import eventually
from support.cluster.release import Release, describe, example, merged

from pd_control.client import get

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

VALUES = merged(example("sim"), {"loadgen": {"duration": 5, "warmup": 1}})
ENGINES = ("prefill", "decode")


@pytest.fixture(name="results", scope="module")
def _results(release: Release) -> Path:
    """The release is installed; the folder that the results' claim is bound to."""
    folder = release.volume(f"{FULLNAME}-results")
    release.install(VALUES)
    release.rolled_out(*(f"statefulset/{role}" for role in ENGINES), "deployment/proxy", "deployment/monitor")
    return folder


def conditions(pod: Manifest) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}


def test_every_pod_is_ready_and_none_was_started_twice(release: Release, results: Path) -> None:
    for component in (*ENGINES, "proxy", "monitor"):
        [pod] = release.pods(component)
        assert conditions(pod)["Ready"] == "True", describe(pod)
        assert release.restarts(pod) == 0, describe(pod)


def test_the_releases_own_tests_pass(release: Release, results: Path) -> None:
    assert "Phase:          Succeeded" in release.helm("test", RELEASE)


def exit_status(release: Release, job: str) -> int | None:
    """Of the one pod that a job made; None while it runs."""
    for pod in release.pods(job):
        for status in pod["status"].get("containerStatuses", []):
            if "terminated" in status["state"]:
                return int(status["state"]["terminated"]["exitCode"])
    return None


def test_the_job_measures_and_the_next_one_reports(release: Release, results: Path) -> None:
    eventually(lambda: exit_status(release, "loadgen") is not None, 120, "the load has ended")
    # 3: every request was served, but this machine was too busy for a valid measurement.
    assert exit_status(release, "loadgen") in {0, 3}
    [run] = results.glob("sim-*")
    requests = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
    assert len(requests) > 10
    assert [request["error"] for request in requests if request.get("error")] == []
    assert (run / "gpu.jsonl").read_text().count("\n") > 10

    release.install(merged(VALUES, {"analysis": {"enabled": True}}))
    eventually(lambda: exit_status(release, "analysis") is not None, 120, "the report has ended")
    assert exit_status(release, "analysis") == 0, release.kubectl(
        "logs", "--selector=app.kubernetes.io/component=analysis"
    )
    assert (results / "report/report.html").stat().st_size > 10_000


def test_the_monitor_reads_the_board_of_every_engine(release: Release, results: Path) -> None:
    [pod] = release.pods("monitor")
    page = get(f"http://{pod['status']['podIP']}:9835/metrics", 10).body.decode()

    for role in ENGINES:
        assert f'role="{role}"' in page


@pytest.mark.parametrize("component", [*ENGINES, "proxy", "monitor"])
def test_what_pod_security_promises_holds_in_the_running_container(
    release: Release, results: Path, component: str
) -> None:
    [pod] = release.pods(component)

    def run(*command: str) -> str:
        return release.kubectl("exec", pod["metadata"]["name"], "--", *command, check=False)

    status = dict(line.split(":\t", 1) for line in run("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    [root] = [line for line in run("cat", "/proc/1/mounts").splitlines() if line.split()[1] == "/"]
    assert "ro" in root.split()[3].split(",")
    assert run("sh", "-c", "ls /var/run/secrets/kubernetes.io 2>&1").strip().endswith("No such file or directory")
