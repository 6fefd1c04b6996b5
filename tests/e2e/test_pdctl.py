"""pdctl with containers: compose starts and stops them, the Docker API says what they are."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.control import environment, pdctl
from support.documents import sandbox
from support.stack import ROOT

from pd_contracts.free_ports import free_ports
from pd_contracts.names import Role
from pd_control.client import proxy_stats
from pd_control.docker.compose import PROJECT, Stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PATIENT = 500


@pytest.fixture(name="env", scope="module")
def _env(docker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    proxy, monitor, locust = map(str, free_ports(3))
    folder = tmp_path_factory.mktemp("pdctl")
    env = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": "pdstack-e2e-pdctl",
        "STATE_DIR": str(folder),
        "HTTP_PROXY_PORT": proxy,
        "MONITOR_PORT": monitor,
        "LOCUST_PORT": locust,
    }
    up = pdctl("up", "--containers", "--engine", "sim", env=env, cwd=ROOT, timeout=PATIENT)
    assert up.returncode == 0, up.stdout + up.stderr
    yield env
    down = pdctl("down", env=env, cwd=ROOT, timeout=PATIENT)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "nothing runs" in pdctl("status", env=env, cwd=ROOT).stdout


def test_status_tells_of_every_container(env: dict[str, str]) -> None:
    status = pdctl("status", env=env, cwd=ROOT)

    assert status.returncode == 0, status.stdout
    for name, service, state in (
        ("proxy", "proxy", "ready"),
        ("prefill-0", "prefill-sim", "ready"),
        ("decode-0", "decode-sim", "ready"),
        ("monitor-sim", "monitor-sim", "up"),
    ):
        line = next(line for line in status.stdout.splitlines() if line.startswith(name))
        assert state in line
        assert f"pdstack-e2e-pdctl-{service}-1" in line


def test_smoke_finds_the_published_proxy(env: dict[str, str]) -> None:
    smoke = pdctl("smoke", env=env, cwd=ROOT)

    assert smoke.returncode == 0, smoke.stdout
    assert "prefill-0 → decode-0" in smoke.stdout


def test_logs_are_the_containers(env: dict[str, str]) -> None:
    for name in ("decode-0", "decode-sim", "pdstack-e2e-pdctl-decode-sim-1"):
        logs = pdctl("logs", name, "-n", "5", env=env, cwd=ROOT)

        assert "decode-0" in logs.stdout
        assert len(logs.stdout.splitlines()) <= 5


def test_the_other_topology_does_not_join_the_same_proxy(env: dict[str, str]) -> None:
    second = pdctl("up", "combined", "--containers", "--engine", "sim", env=env, cwd=ROOT, timeout=PATIENT)

    assert second.returncode == 1
    assert "`pdctl down` first" in second.stdout


def test_engine_containers_tell_their_role_and_the_digest_of_their_image(env: dict[str, str]) -> None:
    engines = [container for container in Stack(Path(ROOT), env).containers() if container.role]
    stats = proxy_stats(f"http://127.0.0.1:{env['HTTP_PROXY_PORT']}")
    assert stats is not None

    # Status, logs, proxy and records call an engine the same.
    assert [(engine.instance, engine.role) for engine in engines] == [
        ("prefill-0", Role.PREFILL),
        ("decode-0", Role.DECODE),
    ]
    assert {engine.instance for engine in engines} == {instance.name for instance in stats.instances}
    for engine in engines:
        assert engine.image == "pdstack/simulator"
        assert engine.image_digest.startswith("sha256:")


def test_a_container_run_by_hand_from_our_image_is_not_ours(env: dict[str, str]) -> None:
    # compose labels the images that it builds, and containers inherit their image's labels
    project = ["--label", f"com.docker.compose.project={env['COMPOSE_PROJECT_NAME']}"]
    service = ["--label", "com.docker.compose.service=decode-sim"]
    command = [
        "docker",
        "run",
        "--rm",
        "--detach",
        *project,
        *service,
        "--entrypoint",
        "sleep",
        "pdstack/simulator",
        "60",
    ]
    started = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        status = pdctl("status", env=env, cwd=ROOT)
    finally:
        subprocess.run(["docker", "rm", "--force", started], capture_output=True, check=True)

    assert sum(line.startswith("decode-0") for line in status.stdout.splitlines()) == 1


def bystander(project: str, **labels: str) -> str:
    """A container that looks like one that compose made; it sleeps for a minute."""
    usual = {"service": "bystander", "container-number": "1", "oneoff": "False", "config-hash": "0"}
    named = {"project": project, **usual, **labels}
    words = [word for name, value in named.items() for word in ("--label", f"com.docker.compose.{name}={value}")]
    command = ["docker", "run", "--rm", "--detach", *words, "--entrypoint", "sleep", "pdstack/simulator", "60"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def running() -> list[str]:
    """Ids of all containers that run."""
    listed = subprocess.run(["docker", "ps", "--quiet", "--no-trunc"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.mark.parametrize("who", ["a test", "a guide"])
def test_pdctl_down_in_a_test_leaves_the_containers_of_a_deployment_alone(
    docker: None, tmp_path: Path, who: str
) -> None:
    started = bystander(PROJECT)
    try:
        if who == "a guide":
            with sandbox(tmp_path) as box:
                box.run("./pdctl down")
        else:
            pdctl("down", env=environment(tmp_path), cwd=ROOT)
        left = running()
    finally:
        subprocess.run(["docker", "rm", "--force", started], capture_output=True, check=True)

    assert started in left


def test_another_clone_neither_ends_the_containers_nor_adds_its_own(docker: None, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours / "services"):
        folder.mkdir(parents=True)
    for name in ("docker-compose.yml", ".env"):
        (ours / name).write_bytes((Path(ROOT) / name).read_bytes())
    env = environment(tmp_path / "state")
    started = bystander(env["COMPOSE_PROJECT_NAME"], **{"project.working_dir": str(theirs)})
    try:
        asked = [pdctl(*words, env=env, cwd=ours) for words in (("down",), ("up", "--containers", "--engine", "sim"))]
        left = running()
    finally:
        subprocess.run(["docker", "rm", "--force", started], capture_output=True, check=True)

    assert started in left
    for done in asked:
        said = " ".join(done.stdout.split())
        assert done.returncode == 1, said
        assert f"were started from {theirs}: `pdctl down` there ends them" in said


def test_a_mistyped_profile_is_answered_with_the_nearest(env: dict[str, str]) -> None:
    up = pdctl("up", "--containers", "--profile", "disag", env=env, cwd=ROOT)

    assert up.returncode == 1
    assert "there is no compose profile 'disag' (did you mean disagg?)" in up.stdout
