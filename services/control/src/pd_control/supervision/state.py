"""The record of what runs: one JSON file that `up` writes and every other command reads, and a lock against two `up` at once."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec
import psutil

from pd_contracts.names import Role, Topology
from pd_contracts.records import write_json
from pd_control.planning.plan import Engine, Listen, ProcessSpec

STATE_FILE = "state.json"
FOREGROUND = "foreground-"
LOCK_POLL_S = 0.05


class StateError(RuntimeError):
    """The deployment on disk does not allow the command; the message says what to do."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A started process. `birth` is its start time in clock ticks since boot: it distinguishes a reused process id."""

    name: str
    pid: int
    birth: int
    started: float
    log: str
    listens: list[Listen]
    role: Role | None = None
    gpus: list[int] = msgspec.field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listens[0].port


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment of local processes; `complete` is set once it was ready, which distinguishes it from the leftovers of a killed `up`."""

    topology: Topology
    engine: Engine
    shape: str
    url: str
    processes: list[Running] = msgspec.field(default_factory=list)
    complete: bool = False

    def adding(self, process: Running) -> "State":
        """The same with one more process."""
        return msgspec.structs.replace(self, processes=[*self.processes, process])


class Store:
    """The folder that holds the state file and the logs."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; it is created on the first write."""
        self.folder = folder

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def load(self) -> State | None:
        """The deployment, None if there is none.

        Raises:
            StateError: if the file is there and cannot be read.
        """
        path = self.folder / STATE_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=State)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            msg = f"{path} cannot be read ({error}): if no part of pdstack is running, remove it"
            raise StateError(msg) from error

    def save(self, state: State) -> None:
        """Write the deployment atomically (by rename)."""
        write_json(self.folder / STATE_FILE, state)

    def forget(self) -> None:
        """Remove the state file; logs stay."""
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    def record(self, process: Running) -> None:
        """Record a process that runs in a terminal."""
        write_json(self._foreground(process.name), process)

    def terminals(self) -> list[Running]:
        """Processes that were started in terminals, running or ended."""
        found = []
        for path in sorted(self.folder.glob(f"{FOREGROUND}*.json")):
            with suppress(OSError, msgspec.MsgspecError):  # another pdctl removes it at this moment
                found.append(msgspec.json.decode(path.read_bytes(), type=Running))
        return found

    def forget_terminal(self, process: Running) -> None:
        self._foreground(process.name).unlink(missing_ok=True)

    def _foreground(self, name: str) -> Path:
        return self.folder / f"{FOREGROUND}{name}.json"

    @contextmanager
    def lock(self, patience_s: float = 0.0) -> Iterator[None]:
        """Lock the folder for a command that starts or stops things; wait up to `patience_s` for another command's lock.

        Raises:
            StateError: if another command holds it for longer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_s
        with (self.folder / "lock").open("w") as file:
            while not _taken(file):
                if time.monotonic() >= deadline:
                    msg = f"another pdctl is starting or stopping things in {self.folder}: wait for it, or end it"
                    raise StateError(msg)
                time.sleep(LOCK_POLL_S)
            yield


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def birth_of(pid: int) -> int | None:
    """Start time of a living process in hundredths of a second since boot; None if it is gone or a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
            return None
        return round((process.create_time() - psutil.boot_time()) * 100)
    except psutil.Error:
        return None


def begun(spec: ProcessSpec, pid: int, log: str) -> Running:
    """The record of a process that was just started. If it ended at once its birth is 0, which no living process has."""
    return Running(
        name=spec.name,
        role=spec.role,
        gpus=spec.gpus,
        pid=pid,
        birth=birth_of(pid) or 0,
        started=time.time(),
        log=log,
        listens=spec.listens,
    )


def is_alive(process: Running) -> bool:
    """True if the process that was started still runs."""
    return birth_of(process.pid) == process.birth
