"""What pdctl reads from `docker inspect`."""

import time
from pathlib import Path
from typing import Any

from pd_contracts.names import Role
from pd_contracts.stats import InstanceStats, ProxyStats
from pd_control.docker.containers import Container, container_of, expected, of_others, rows, url_of

IMAGE = {"Id": "sha256:1234", "RepoDigests": []}


def inspected(service: str, *, env: tuple[str, ...] = (), **state: Any) -> dict[str, Any]:
    return {
        "Id": "f00",
        "Name": f"/pdstack-{service}-1",
        "RestartCount": state.pop("restarts", 0),
        "State": {"Status": "running", "ExitCode": 0, "StartedAt": "2026-01-02T03:04:05.123456789Z", **state},
        "Config": {
            "Env": ["PATH=/bin", *env],
            "Image": f"pdstack/{service}",
            "Labels": {"com.docker.compose.service": service},
        },
        "HostConfig": {"DeviceRequests": None},
        "NetworkSettings": {"Networks": {"pdstack_default": {"IPAddress": "172.18.0.5"}}},
    }


def test_an_engine_is_read_with_its_role_number_address_and_image() -> None:
    env = ("INSTANCE=1", "COMBINED_HTTP_PORT=8000")

    container = container_of(inspected("combined-cpu-1", env=env), IMAGE)

    assert (container.role, container.number, container.name) == (Role.COMBINED, 1, "pdstack-combined-cpu-1-1")
    assert container.address == "http://172.18.0.5:8001"
    assert (container.image, container.image_digest) == ("pdstack/combined-cpu-1", "sha256:1234")


def test_the_digest_of_a_pulled_image_is_its_registrys() -> None:
    image = {"Id": "sha256:1234", "RepoDigests": ["vllm/vllm-openai@sha256:abcd"]}

    assert container_of(inspected("prefill"), image).image_digest == "sha256:abcd"


def test_a_helper_from_an_engines_image_is_no_engine() -> None:
    container = container_of(inspected("tiny-model", env=("PD_ROLE=prefill",), Status="exited"), IMAGE)

    assert container.role is None
    assert not container.failed
    assert expected([container]) == {}


def test_containers_of_another_clone_are_told_from_ours(tmp_path: Path) -> None:
    ours, theirs, gone = (tmp_path / name for name in ("ours", "theirs", "gone"))
    ours.mkdir()
    theirs.mkdir()
    (tmp_path / "link").symlink_to(ours)
    made = []
    for folder in (ours, tmp_path / "link", theirs, gone):
        read = inspected("proxy")
        read["Config"]["Labels"]["com.docker.compose.project.working_dir"] = str(folder)
        made.append(container_of(read, IMAGE))

    assert of_others([*made, container_of(inspected("proxy"), IMAGE)], ours) == [str(theirs)]


def test_gpus_come_from_the_device_request() -> None:
    read = inspected("decode")
    read["HostConfig"]["DeviceRequests"] = [{"Driver": "nvidia", "DeviceIDs": ["3", "4"]}]

    assert container_of(read, IMAGE).gpus == (3, 4)


def test_ending_badly_and_starting_over_are_failures() -> None:
    assert container_of(inspected("prefill", Status="exited", ExitCode=2), IMAGE).failed
    assert container_of(inspected("prefill", restarts=1), IMAGE).failed
    assert not container_of(inspected("prefill"), IMAGE).failed


def containers() -> list[Container]:
    ports = ("HTTP_PROXY_PORT=10001", "PREFILL_HTTP_PORT=20003", "DECODE_HTTP_PORT=20005")
    return [container_of(inspected(name, env=ports), IMAGE) for name in ("proxy", "prefill-sim", "decode-sim")]


def test_the_published_proxy_is_found() -> None:
    assert url_of(containers(), {}) == "http://127.0.0.1:10001"
    assert url_of(containers(), {"PUBLISH_HOST": "0.0.0.0"}) == "http://127.0.0.1:10001"
    assert url_of(containers()[1:], {}) is None


def test_status_joins_what_docker_and_the_proxy_say() -> None:
    stats = ProxyStats(
        ready=False,
        instances=[
            InstanceStats(name="prefill-0", role=Role.PREFILL, state="ready"),
            InstanceStats(name="decode-0", role=Role.DECODE, state="lost", reason="stopped pinging"),
        ],
    )

    told = {row.name: row for row in rows(containers(), stats)}

    assert [(row.state, row.ok) for row in told.values()] == [
        ("waits for engines", False),
        ("ready", True),
        ("lost (stopped pinging)", False),
    ]
    assert told["prefill-0"].where == "pdstack-prefill-sim-1"
    assert told["prefill-0"].up_since.startswith(time.strftime("%Y-%m-%d", time.localtime(1767323045)))


def test_a_port_of_its_own_wins_over_counting() -> None:
    env = ("INSTANCE=1", "COMBINED_HTTP_PORT=8000", "HTTP_PORT=8000")

    container = container_of(inspected("combined-sim-1", env=env), IMAGE)

    assert (container.number, container.address) == (1, "http://172.18.0.5:8000")
