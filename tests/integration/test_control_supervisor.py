"""Starting, watching and stopping processes; tiny scripts stand in for services."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.control import alive, script
from support.waiting import until

from pd_contracts.names import Topology
from pd_control.local import processes
from pd_control.local.readiness import process_traces
from pd_control.planning.plan import Engine
from pd_control.supervision import attached_command, supervisor
from pd_control.supervision.state import Running, State, StateError, Store, birth_of, is_alive
from pd_control.supervision.supervisor import StartError

SLEEP = "import time; time.sleep(60)"


class Starter:
    """Starts scripts and remembers them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Running] = []

    def __call__(self, name: str, code: str) -> Running:
        process = supervisor.start(script(name, code), self.folder / f"{name}.log", os.environ)
        self.started.append(process)
        return process


@pytest.fixture(name="start")
def _start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    supervisor.stop(starter.started, wait_s=0)


def logged(process: Running) -> list[str]:
    return supervisor.last_lines(Path(process.log), 10)


def test_output_and_errors_go_to_the_log(start: Starter) -> None:
    process = start("one", "import sys; print('out'); print('err', file=sys.stderr)")

    until(lambda: not is_alive(process))

    assert sorted(logged(process)) == ["err", "out"]


def test_a_process_that_ended_is_told_with_its_last_lines(start: Starter) -> None:
    lives = start("lives", SLEEP)
    process = start("engine", "print('loading'); raise SystemExit('no such model')")
    until(lambda: not is_alive(process))

    with pytest.raises(StartError) as error:
        process_traces([lives, process])()

    assert str(error.value).startswith("engine ended")
    assert error.value.lines == ["loading", "no such model"]


def test_a_program_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(script("engine", ""), argv=["/nowhere/python"])

    with pytest.raises(StartError, match=r"engine: /nowhere/python: No such file"):
        supervisor.start(spec, tmp_path / "log", os.environ)


def test_stop_ends_the_children_too(start: Starter) -> None:
    child = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid); {SLEEP}"
    process = start("parent", child)
    until(lambda: logged(process))
    pid = int(logged(process)[0])

    killed = supervisor.stop([process])

    assert killed == []
    assert not alive(process.pid)
    assert not alive(pid)


def test_what_ignores_a_polite_request_is_killed(start: Starter) -> None:
    process = start("deaf", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); {SLEEP}")
    until(lambda: logged(process))

    assert supervisor.stop([process], wait_s=0.2) == ["deaf"]
    assert not alive(process.pid)


def test_children_that_outlive_their_leader_are_stopped(start: Starter) -> None:
    orphan = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid)"
    process = start("leader", orphan)
    until(lambda: not is_alive(process))
    pid = int(logged(process)[0])
    assert alive(pid)

    supervisor.stop([process])

    assert not alive(pid)


def test_a_stranger_with_the_same_process_id_is_left_alone(start: Starter) -> None:
    process = start("ours", SLEEP)
    stranger = msgspec.structs.replace(process, birth=process.birth - 1)

    supervisor.stop([stranger])

    assert not is_alive(stranger)
    assert is_alive(process)


def test_a_tethered_process_dies_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, time\n"
        "from support.control import script\n"
        "from pd_control.supervision import supervisor\n"
        f"process = supervisor.start(script('child', {SLEEP!r}), pathlib.Path({str(tmp_path / 'log')!r}), os.environ, tethered=True)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": tests}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)

        parent.send_signal(signal.SIGKILL)

    until(lambda: not alive(pid))


@pytest.mark.parametrize(
    ("end", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 2)", 128 + signal.SIGINT)]
)
def test_a_command_in_the_foreground_gives_its_status(end: str, status: int) -> None:
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); {end}"

    assert attached_command.run([sys.executable, "-c", code], os.environ) == status


def test_the_state_file_outlives_the_command_that_wrote_it(start: Starter, tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    state = State(topology=Topology.DISAGG, engine=Engine.SIM, shape="1P1D", url="http://127.0.0.1:1")
    state = state.adding(start("one", SLEEP))

    assert store.load() is None
    store.save(state)
    assert store.load() == state
    store.forget()
    assert store.load() is None


def test_a_broken_state_file_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")

    with pytest.raises(StateError, match="remove it"):
        Store(tmp_path).load()


def test_only_one_command_at_a_time_starts_or_stops(tmp_path: Path) -> None:
    with Store(tmp_path).lock(), pytest.raises(StateError, match="another pdctl"), Store(tmp_path).lock():
        pass


def test_children_of_what_was_killed_in_a_terminal_are_ended_with_the_next_command(tmp_path: Path) -> None:
    code = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
    )
    store = Store(tmp_path / "state")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0) as terminal:
        assert terminal.stdout is not None
        child = int(terminal.stdout.readline())
        birth = birth_of(terminal.pid) or 0
        running = Running(name="prefill-0", pid=terminal.pid, birth=birth, started=0, log="", listens=[])
        store.record(running)
        assert processes.in_terminals(store) == [running]
        terminal.kill()
    assert alive(child)

    processes.clear_terminals(store)

    assert not alive(child)
    assert store.terminals() == []


def test_what_shares_a_group_with_others_is_ended_alone(start: Starter) -> None:
    leader = start(
        "shell",
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}",
    )
    until(lambda: logged(leader))
    pid = int(logged(leader)[0])
    job = msgspec.structs.replace(leader, pid=pid, birth=birth_of(pid) or 0)

    supervisor.stop([job], wait_s=0.5)

    assert not alive(pid)
    assert is_alive(leader)
