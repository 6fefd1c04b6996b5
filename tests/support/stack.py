"""A compose project for one test: free ports and its own volumes, removed afterwards."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pd_contracts.free_ports import free_ports

ROOT = Path(__file__).parents[2]


class Stack:
    """One compose project."""

    def __init__(self, project: str, profiles: tuple[str, ...], variables: Mapping[str, str]) -> None:
        names = ("HTTP_PROXY_PORT", "MONITOR_PORT", "LOCUST_PORT")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.project = project
        self.options = [part for profile in profiles for part in ("--profile", profile)]
        owner = {"PD_UID": str(os.getuid()), "PD_GID": str(os.getgid())}
        ports = {name: str(port) for name, port in self.ports.items()}
        self.environment = {**os.environ, **owner, **ports, **variables}

    @property
    def url(self) -> str:
        """Where users talk to the stack."""
        return f"http://127.0.0.1:{self.ports['HTTP_PROXY_PORT']}"

    @property
    def network(self) -> str:
        """Name of the project's network."""
        return f"{self.project}_default"

    def compose(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run compose for this project; its output is in the error if it fails."""
        command = ["docker", "compose", "--project-name", self.project, *self.options, *arguments]
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
        return result

    def address(self, service: str) -> str:
        """The container's address in the project's network, which this host reaches."""
        container = self.compose("ps", "--quiet", service).stdout.split()[0]
        found: list[dict[str, Any]] = json.loads(
            subprocess.run(["docker", "inspect", container], capture_output=True, check=True).stdout
        )
        address: str = found[0]["NetworkSettings"]["Networks"][self.network]["IPAddress"]
        return address


@contextmanager
def running(
    project: str, *profiles: str, services: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """Build, start and wait until healthy; on the way out take everything down and, on failure, show the logs."""
    stack = Stack(project, profiles, variables or {})
    try:
        stack.compose("up", "--detach", "--build", "--wait", "--wait-timeout", "540", *services)
        yield stack
    except BaseException:
        print(stack.compose("logs", "--tail", "60", "--no-color").stdout)  # noqa: T201  pytest shows it with the failure
        raise
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
