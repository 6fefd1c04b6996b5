"""Starting, watching and stopping local processes, each the leader of its own process group with its own log file."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pd_contracts.free_ports import is_free
from pd_control.planning.plan import Listen, ProcessSpec
from pd_control.supervision import die_with_parent
from pd_control.supervision.death_cause import culprit
from pd_control.supervision.state import Running, begun, birth_of, is_alive

STOP_WAIT_S = 10.0
POLL_S = 0.05
FAR_LINES = 1000  # how far back an error may lie behind the messages that follow from it
SHOWN_LINES = 12
MARK = "PDCTL_LOGS"  # what every process in the background carries in its environment


class StartError(RuntimeError):
    """A process could not be started, or died; `lines` are the last ones of its log."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)


def start(spec: ProcessSpec, log: Path, environment: Mapping[str, str], *, tethered: bool = False) -> Running:
    """Start one process in its own session with its output in `log`; if `tethered`, it ends when this process ends.

    Raises:
        StartError: if its program does not exist.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = (
        [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *spec.argv] if tethered else spec.argv
    )
    # Not subprocess: its objects warn if the process outlives them, and these processes outlive pdctl.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        marked = {**environment_of(spec, environment), MARK: str(log.parent.resolve())}
        pid = os.posix_spawnp(argv[0], argv, marked, file_actions=files, setsid=True)
    except OSError as error:
        msg = f"{spec.name}: {spec.argv[0]}: {error.strerror}"
        raise StartError(msg) from error
    # A process that has already ended is our zombie and counts as dead from the start.
    return begun(spec, pid, str(log))


def environment_of(spec: ProcessSpec, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process: those in force, overridden by its own."""
    merged = {**environment, **spec.env, "PYTHONUNBUFFERED": "1"}
    if spec.python_path:
        merged["PYTHONPATH"] = os.pathsep.join(filter(None, (*spec.python_path, environment.get("PYTHONPATH", ""))))
    return merged


def stop(processes: Iterable[Running], wait_s: float = STOP_WAIT_S) -> list[str]:
    """End process groups: SIGTERM to all, SIGKILL to those that still live after `wait_s`. Returns the names of the killed ones."""
    groups = list(processes)
    for process in groups:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and any(map(_group_lives, groups)):
        time.sleep(POLL_S)
    killed = [process for process in groups if _group_lives(process)]
    for process in killed:
        _signal_group(process, signal.SIGKILL)
    while any(map(_group_lives, killed)):
        time.sleep(POLL_S)
    return [process.name for process in killed]


def _signal_group(process: Running, number: signal.Signals) -> None:
    if _group_lives(process):
        with contextlib.suppress(ProcessLookupError):  # it ended before the signal
            # A process that a script started in the foreground does not lead its group, so the group's others are not ours to end.
            ours = not birth_of(process.pid) or os.getpgid(process.pid) == process.pid
            (os.killpg if ours else os.kill)(process.pid, number)


def end_strays(logs: Path) -> None:
    """Kill processes with a log in `logs` that a killed pdctl started but did not record."""
    mark = f"{MARK}={logs.resolve()}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended while we looked, or another user's
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


def _group_lives(process: Running) -> bool:
    """True if the leader or a child that it left behind lives; a process id that was reused is not ours."""
    _reap(process.pid)
    birth = birth_of(process.pid)
    if birth is not None:
        return birth == process.birth
    return any(_members(process.pid))


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # started by an earlier pdctl: init reaps it
        os.waitpid(pid, os.WNOHANG)


def _members(group: int) -> Iterable[int]:
    # As long as a group has members the kernel gives its number to no new process, so these are ours.
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended while we looked
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    yield int(entry.name)


def dead(processes: Iterable[Running]) -> list[Running]:
    return [process for process in processes if not is_alive(process)]


def death(process: Running) -> StartError:
    """The error for a process that ended: the last error in its log, the log's path, and its last lines."""
    lines = last_lines(Path(process.log), FAR_LINES)
    cause = culprit(lines)
    said = f": {cause}" if cause else ""
    return StartError(f"{process.name} ended{said}; its log is {process.log}", lines[-SHOWN_LINES:])


def last_lines(path: Path, count: int, most_bytes: int = 256 * 1024) -> list[str]:
    """The last lines of a log, without reading more than its end; none if there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            return file.read().decode("utf-8", "replace").splitlines()[-count:] if count else []
    except FileNotFoundError:
        return []


def taken(listens: Iterable[Listen]) -> list[Listen]:
    """Those ports that something else already listens on."""
    return [listen for listen in listens if not is_free(listen.port)]
