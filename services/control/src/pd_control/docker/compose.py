"""Containers: compose starts and stops them, the Docker API reports on them."""

import difflib
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from pd_contracts.names import Connector, Role, Topology
from pd_control.docker.containers import LABEL, Container, container_of, of_others
from pd_control.supervision.supervisor import StartError, last_lines

PROJECT: Final = "pdstack"
# Locust's page, which every serving profile includes.
PAGES: Final = ("loadgen", "loadgen-cpu")
_PROFILES: Final = {
    ("vllm", Topology.DISAGG): "disagg",
    ("vllm", Topology.COMBINED): "combined",
    ("vllm-cpu", Topology.DISAGG): "cpu",
    ("vllm-cpu", Topology.COMBINED): "cpu-combined",
    ("sim", Topology.DISAGG): "sim",
    ("sim", Topology.COMBINED): "sim-combined",
}
# These need their engines in common namespaces.
_IN_FABRIC: Final = frozenset({Connector.P2P_NCCL, Connector.NIXL})


def profile_of(engine: str, topology: Topology, connector: Connector) -> str:
    """The compose profile that serves with these engines."""
    if engine == "vllm" and topology is Topology.DISAGG and connector in _IN_FABRIC:
        return "disagg-fabric"
    return _PROFILES[engine, topology]


if TYPE_CHECKING:
    import docker


class ContainerError(RuntimeError):
    """Docker or compose cannot do it; the message says why and what to do, `lines` are the last ones of compose's log."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)


def _rank(container: Container) -> tuple[int, int, str]:
    role = -1 if container.role is None else list(Role).index(container.role)
    return role, container.number, container.service


def _reason(error: BaseException) -> str:
    """What the system said first: each library on the way to us has wrapped it in a text of its own."""
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    return (first.strerror if isinstance(first, OSError) else None) or str(error)


def _docker() -> Any:
    try:
        import docker  # noqa: PLC0415  a GPU node that runs processes need not have it
    except ImportError as error:
        msg = "Python's package docker is not installed here: use processes (without --containers)"
        raise ContainerError(msg) from error
    return docker


class Stack:
    """The containers of one compose project."""

    def __init__(
        self, root: Path, environment: Mapping[str, str], project: str | None = None, log: Path | None = None
    ) -> None:
        """Use the compose file in `root`, as compose's own COMPOSE_PROJECT_NAME or as `project`.

        Compose writes to the terminal, or into `log`. Docker is not asked anything yet.
        """
        self._root = root
        self._environment = environment
        self._project = project or environment.get("COMPOSE_PROJECT_NAME") or PROJECT
        self._log = log

    def up(self, profiles: Sequence[str], *, leave_out: Collection[str] = ()) -> None:
        """Build what is missing and start all services of some profiles but those in `leave_out`.

        Raises:
            ContainerError: for a profile that is not there, if compose fails, if another clone's containers are in the
                project, or if engines of another profile run: they would join the same proxy.
        """
        self._refuse_unknown(profiles)
        found = self.containers()
        self.refuse_others(found)
        wanted = self._services(profiles)
        others = [container.name for container in found if container.role and container.service not in wanted]
        if others:
            msg = f"{', '.join(others)} of another profile is already running: run `pdctl down` first"
            raise ContainerError(msg)
        services = sorted(wanted.difference(leave_out)) if leave_out else []
        self._compose(profiles, "up", "--detach", "--build", "--remove-orphans", *services)

    def refuse_others(self, containers: Sequence[Container]) -> None:
        """Refuse to touch the project while another clone's containers are in it.

        Raises:
            ContainerError: naming the clone.
        """
        if others := of_others(containers, self._root):
            msg = f"the containers of Compose project {self._project} were started from {others[0]}: `pdctl down` there ends them; COMPOSE_PROJECT_NAME gives those of this clone a project of their own"
            raise ContainerError(msg)

    def down(self, *, volumes: bool = False) -> None:
        """Stop and remove the containers of every profile.

        Raises:
            ContainerError: if compose fails.
        """
        self._compose(["*"], "down", "--remove-orphans", *(["--volumes"] if volumes else []))

    def _refuse_unknown(self, profiles: Sequence[str]) -> None:
        """Refuse unknown profiles; compose would only say "no service selected"."""
        known = sorted(self._run([], ["config", "--profiles"], stdout=subprocess.PIPE).stdout.decode().split())
        for profile in profiles:
            if profile not in known:
                similar = difflib.get_close_matches(profile, known, n=1)
                meant = f" (did you mean {similar[0]}?)" if similar else ""
                msg = f"there is no compose profile {profile!r}{meant}; there are: {', '.join(known)}"
                raise ContainerError(msg)

    def _services(self, profiles: Sequence[str]) -> set[str]:
        done = self._run(profiles, ["config", "--services"], stdout=subprocess.PIPE)
        return set(done.stdout.decode().split())

    def _compose(self, profiles: Sequence[str], *arguments: str) -> None:
        if self._log is None:
            self._run(profiles, arguments)
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as file:
            self._run(profiles, arguments, stdout=file, stderr=subprocess.STDOUT)

    def _run(
        self,
        profiles: Sequence[str],
        arguments: Sequence[str],
        stdout: int | IO[bytes] | None = None,
        stderr: int | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        if not (self._root / "docker-compose.yml").exists():
            msg = f"no docker-compose.yml in {self._root}: run pdctl inside the repository"
            raise ContainerError(msg)
        flags = [flag for profile in profiles for flag in ("--profile", profile)]
        command = ["docker", "compose", "--project-name", self._project, *flags, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                check=False,
            )
        except FileNotFoundError:
            msg = (
                "docker is not installed here: use processes (without --containers), or install Docker with Compose v2"
            )
            raise ContainerError(msg) from None
        if done.returncode != 0:
            raise self._failure(arguments, done.returncode)
        return done

    def _failure(self, arguments: Sequence[str], status: int) -> ContainerError:
        what = f"`docker compose {' '.join(arguments)}` ended with status {status}"
        if self._log is None:
            return ContainerError(f"{what}; its message is above")
        return ContainerError(f"{what}; its output is in {self._log}", last_lines(self._log, 12))

    def containers(self) -> list[Container]:
        """All containers of the project, engines last and in the order of roles.

        Raises:
            ContainerError: if Docker does not answer.
        """
        with self._client() as client:
            # Images built by compose carry its project label too, and with it every container that is run from them by
            # hand; only containers that compose made have a number.
            labels = [f"{LABEL}.project={self._project}", f"{LABEL}.container-number"]
            # A listed container may be gone when it is inspected.
            found = client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
            read = [container_of(each.attrs, client.images.get(each.attrs["Image"]).attrs) for each in found]
        return sorted(read, key=_rank)

    def log(self, container: Container, lines: int) -> list[str]:
        """The last lines of a container's log.

        Raises:
            ContainerError: if Docker does not answer.
        """
        with self._client() as client:
            text: bytes = client.containers.get(container.id).logs(tail=lines)
        return text.decode("utf-8", "replace").splitlines()

    def follow(self, container: Container, lines: int) -> Iterator[bytes]:
        """The last lines of a container's log, then new ones as they come.

        Raises:
            ContainerError: if Docker does not answer.
        """
        with self._client() as client:
            yield from client.containers.get(container.id).logs(stream=True, follow=True, tail=lines)

    @contextmanager
    def _client(self) -> "Iterator[docker.DockerClient]":
        module = _docker()
        try:
            client = module.from_env(environment=dict(self._environment))
            try:
                yield client
            finally:
                client.close()
        except module.errors.NotFound as error:
            msg = f"a container or image of project {self._project} was removed meanwhile, not by this pdctl ({error.explanation})"
            raise ContainerError(msg) from error
        # The errors of requests, which docker passes on, are OSErrors.
        except (module.errors.DockerException, OSError) as error:
            msg = f"Docker does not answer ({_reason(error)}): start it, or do without containers (--engine sim needs none)"
            raise ContainerError(msg) from error

    def answers(self) -> bool:
        """True if a Docker engine answers."""
        try:
            with self._client() as client:
                return bool(client.ping())
        except ContainerError:
            return False

    def traces(self) -> Callable[[], object]:
        """For `readiness.watch`: raises if a container failed, and returns values that change while engines make progress."""

        def look() -> object:
            containers = self.containers()
            for container in containers:
                if container.failed:
                    how = (
                        f"ended with status {container.exit_code}"
                        if container.exit_code
                        else "ended and was started again"
                    )
                    message = f"{container.name} {how}"
                    raise StartError(message, self.log(container, 12))
            return [(c.name, c.state, c.health, self.log(c, 1) if c.role else []) for c in containers]

        return look
