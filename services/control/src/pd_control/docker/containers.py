"""A deployment's containers as the Docker API reports them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pd_contracts.names import Role
from pd_contracts.stats import ProxyStats
from pd_control.local.processes import Row, engine_state, proxy_state, up_since

LABEL: Final = "com.docker.compose"


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A container of the deployment, from `docker inspect`.

    Attributes:
        image_digest: digest of the image in its registry or, for an image built here, the image's own id; either is a hash
            over the image's content.
        address: where its port answers from this host; empty if nowhere.
        folder: the clone whose compose file made it; empty if compose did not say.
    """

    id: str
    name: str
    service: str
    state: str
    role: Role | None = None
    number: int = 0
    health: str = ""
    exit_code: int = 0
    restarts: int = 0
    started: str = ""
    image: str = ""
    image_digest: str = ""
    address: str = ""
    port: int | None = None
    gpus: tuple[int, ...] = ()
    folder: str = ""

    @property
    def instance(self) -> str:
        """The engine's name at the proxy and in records; of any other container its service."""
        return self.service if self.role is None else f"{self.role}-{self.number}"

    @property
    def failed(self) -> bool:
        """True if it ended badly, or ended and was started again."""
        return self.restarts > 0 or self.state == "restarting" or (self.state == "exited" and self.exit_code != 0)


def container_of(inspected: Mapping[str, Any], image: Mapping[str, Any]) -> Container:
    """Read what `docker inspect` says of a container and of its image."""
    state, config = inspected["State"], inspected["Config"]
    env = dict(entry.split("=", 1) for entry in config["Env"] or [] if "=" in entry)
    service = config["Labels"][f"{LABEL}.service"]
    # By name, not by PD_ROLE: helpers run from an engine's image and would count as engines.
    role = next((role for role in Role if service.split("-")[0] == role), None)
    number = int(env.get("INSTANCE") or 0)
    port = _port(service, role, number, env)
    return Container(
        id=inspected["Id"],
        name=inspected["Name"].lstrip("/"),
        service=service,
        state=state["Status"],
        role=role,
        number=number,
        health=(state.get("Health") or {}).get("Status", ""),
        exit_code=state["ExitCode"],
        restarts=inspected.get("RestartCount", 0),
        started=state["StartedAt"],
        image=config["Image"],
        image_digest=next((name.partition("@")[2] for name in image.get("RepoDigests") or []), image["Id"]),
        address=_address(inspected, port),
        port=port,
        gpus=_gpus(inspected),
        folder=config["Labels"].get(f"{LABEL}.project.working_dir", ""),
    )


def _port(service: str, role: Role | None, number: int, env: Mapping[str, str]) -> int | None:
    variable = {"proxy": "HTTP_PROXY_PORT", "monitor": "MONITOR_PORT"}.get(service.split("-", maxsplit=1)[0])
    if env.get("HTTP_PORT"):
        variable, number = "HTTP_PORT", 0
    elif role is not None:
        variable = f"{role.upper()}_HTTP_PORT"
    value = env.get(variable or "", "")
    return int(value) + number if value.isdigit() else None


def _address(inspected: Mapping[str, Any], port: int | None) -> str:
    networks = (inspected["NetworkSettings"].get("Networks") or {}).values()
    hosts = [network["IPAddress"] for network in networks if network.get("IPAddress")]
    return f"http://{hosts[0]}:{port}" if hosts and port else ""


def _gpus(inspected: Mapping[str, Any]) -> tuple[int, ...]:
    requests = inspected["HostConfig"].get("DeviceRequests") or []
    return tuple(int(gpu) for request in requests for gpu in request.get("DeviceIDs") or [] if gpu.isdigit())


def of_others(containers: Sequence[Container], root: Path) -> list[str]:
    """The other clones that made some of the containers. One that is gone is none: nobody could end its containers there."""
    folders = sorted({container.folder for container in containers if container.folder})
    return [folder for folder in folders if Path(folder).is_dir() and not Path(folder).samefile(root)]


def expected(containers: Sequence[Container]) -> dict[Role, int]:
    """How many engines of each role must join."""
    roles = [container.role for container in containers if container.role is not None]
    return {role: roles.count(role) for role in Role if role in roles}


def url_of(containers: Sequence[Container], environment: Mapping[str, str]) -> str | None:
    """Where the published proxy answers; None if there is no proxy."""
    port = next((container.port for container in containers if container.service == "proxy"), None)
    host = environment.get("PUBLISH_HOST") or "127.0.0.1"
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}" if port else None


def rows(containers: Sequence[Container], stats: ProxyStats | None) -> list[Row]:
    """The lines of `pdctl status`."""
    counts = expected(containers)
    return [_row(container, stats, counts) for container in containers]


def _row(container: Container, stats: ProxyStats | None, counts: Mapping[Role, int]) -> Row:
    state = container.state
    if state == "running" and container.role is not None:
        state = engine_state(container.instance, container.role, stats, counts[container.role])
    elif state == "running" and container.service == "proxy":
        state = proxy_state(stats)
    elif state == "running":
        state = {"": "up", "healthy": "up"}.get(container.health, container.health)
    elif state == "exited":
        state = "done" if container.exit_code == 0 else f"ended with status {container.exit_code}"
    running = container.state == "running"
    return Row(
        name=container.instance,
        role=container.role or "",
        state=state,
        where=container.name,
        port=str(container.port or ""),
        up_since=_since(container.started) if running else "",
        ok=state in {"ready", "up", "done"},
    )


def _since(started: str) -> str:
    # Docker writes nanoseconds, which datetime does not read.
    return up_since(datetime.fromisoformat(started[:19]).replace(tzinfo=UTC).timestamp())
