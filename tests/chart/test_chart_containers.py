"""The pods of the sim example, run by Docker as the chart describes them: commands, variables, user, read-only root."""

import subprocess
import uuid
from collections.abc import Iterator

import pytest
from support.chart import EXAMPLES, FULLNAME, ROOT, Manifest, Values, load, of_kind, render
from support.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

[SIM] = [load(path) for path in EXAMPLES if path.stem == "sim"]
VALUES: Values = {
    **SIM,
    "images": {"tag": "latest"},
    "loadgen": {**SIM["loadgen"], "duration": 3, "warmup": 1},
    "analysis": {"enabled": True, "title": "From the chart"},
}
LOCKED = ["--read-only", "--user", "10001:10001", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
WRITABLE = ["--tmpfs", "/tmp:uid=10001,gid=10001"]  # noqa: S108


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert not check or result.returncode == 0, result.stderr
    return result


class Cluster:
    """A Docker network in which each pod is a container with the names that services would give it."""

    def __init__(self) -> None:
        self.network = f"pdstack-chart-{uuid.uuid4().hex[:8]}"
        docker("network", "create", self.network)

    def start(self, name: str, container: Manifest, *aliases: str, index: int = 0) -> None:
        names = [part for alias in aliases for part in ("--network-alias", alias)]
        docker("run", "--detach", "--name", self.name(name), *names, *self._what(container, index))

    def run(self, container: Manifest) -> subprocess.CompletedProcess[str]:
        return docker("run", "--rm", *self._what(container, 0), check=False)

    def probe(self, name: str, command: list[str]) -> bool:
        return docker("exec", self.name(name), *command, check=False).returncode == 0

    def name(self, name: str) -> str:
        return f"{self.network}-{name}"

    def _what(self, container: Manifest, index: int) -> list[str]:
        options = ["--network", self.network, *LOCKED, *WRITABLE, "--volume", f"{self.network}:/results"]
        for item in container.get("env", []):
            if "value" in item:
                options += ["--env", f"{item['name']}={item['value']}"]
            elif item["name"] == "POD_NAME":
                options += ["--env", f"POD_NAME=engine-{index}"]
        command = [*container.get("command", []), *container.get("args", [])]
        if "command" in container:
            options += ["--entrypoint", command.pop(0)]
        return [*options, container["image"], *command]

    def close(self) -> None:
        for container in docker("ps", "--all", "--quiet", "--filter", f"network={self.network}").stdout.split():
            docker("rm", "--force", container)
        docker("network", "rm", self.network)
        docker("volume", "rm", self.network)


@pytest.fixture(scope="module")
def images() -> None:
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            pytest.skip(f"`{' '.join(command)}` fails: no Docker engine, or none with compose")
    for service in ("proxy", "prefill-sim", "monitor-sim", "loadgen", "analysis"):
        built = subprocess.run(
            ["docker", "compose", "build", "--quiet", service],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def cluster(images: None) -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        for deployment in of_kind(render(VALUES), "Deployment"):
            name = deployment["metadata"]["name"].removeprefix(FULLNAME + "-")
            aliases = [f"{FULLNAME}-{name}", *([f"{FULLNAME}-discovery"] if name == "proxy" else [])]
            cluster.start(name, deployment["spec"]["template"]["spec"]["containers"][0], *aliases)
        for item in of_kind(render(VALUES), "StatefulSet"):
            name = item["metadata"]["name"]
            [container] = item["spec"]["template"]["spec"]["containers"]
            cluster.start(container["name"], container, f"{name}-0.{name}")
        yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_engines_pass_their_probes(cluster: Cluster, role: str, probe: str) -> None:
    [item] = of_kind(render(VALUES), "StatefulSet", role)
    [container] = item["spec"]["template"]["spec"]["containers"]

    until(lambda: cluster.probe(role, container[probe]["exec"]["command"]), 60, period_s=0.5)


def test_the_releases_own_tests_pass(cluster: Cluster) -> None:
    pods = {pod["metadata"]["name"]: pod["spec"]["containers"][0] for pod in of_kind(render(VALUES), "Pod")}
    until(lambda: cluster.run(pods[f"{FULLNAME}-test-ready"]).returncode == 0, 60, period_s=0.5)

    results = {name: cluster.run(container) for name, container in pods.items()}

    assert {name: result.stderr for name, result in results.items() if result.returncode != 0} == {}


def test_the_load_is_served_its_power_recorded_and_its_report_written(cluster: Cluster) -> None:
    jobs = {
        job["metadata"]["labels"]["app.kubernetes.io/component"]: job["spec"]["template"]["spec"]["containers"][0]
        for job in of_kind(render(VALUES), "Job")
    }

    load = cluster.run(jobs["loadgen"])
    # 3: every request was served, but this machine was too busy for a valid measurement.
    assert load.returncode in {0, 3}, load.stderr
    assert "0 failed" in load.stdout
    assert "SIMULATED" in load.stdout

    report = cluster.run(jobs["analysis"])
    assert report.returncode == 0, report.stderr
    assert "/results/report/report.html" in report.stdout
