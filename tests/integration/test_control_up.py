"""`pdctl up`, `status`, `smoke`, `logs` and `down` with simulated engines as local processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.control import alive, environment, pdctl, until

from pd_control.state import State, Store


@pytest.fixture(name="env")
def _env(tmp_path: Path) -> Iterator[dict[str, str]]:
    env = environment(tmp_path / "state")
    yield env
    pdctl("down", env=env, cwd=tmp_path)


def state(env: Mapping[str, str]) -> State | None:
    return Store(Path(env["STATE_DIR"])).load()


def pids(env: Mapping[str, str]) -> dict[str, int]:
    found = state(env)
    return {process.name: process.pid for process in found.processes} if found else {}


def test_a_deployment_from_up_to_down(env: dict[str, str], tmp_path: Path) -> None:
    up = pdctl("up", "--engine", "sim", env=env, cwd=tmp_path)
    assert up.returncode == 0, up.stdout + up.stderr
    assert f"1P1D is ready at http://127.0.0.1:{env['HTTP_PROXY_PORT']}" in up.stdout
    running = pids(env)
    assert set(running) == {"proxy", "prefill-0", "decode-0", "monitor"}

    status = pdctl("status", env=env, cwd=tmp_path)
    assert status.returncode == 0, status.stdout
    for name, pid in running.items():
        line = next(line for line in status.stdout.splitlines() if line.startswith(name))
        assert str(pid) in line
        assert "ready" in line or "up" in line

    smoke = pdctl("smoke", env=env, cwd=tmp_path)
    assert smoke.returncode == 0, smoke.stdout
    for check in ("completion: 8 tokens", "streamed completion: 8 tokens", "chat: 8 tokens", "same answer"):
        assert check in smoke.stdout
    assert "prefill-0 → decode-0: queue" in smoke.stdout

    second = pdctl("up", "--engine", "sim", env=env, cwd=tmp_path)
    assert second.returncode == 0
    assert "already runs" in second.stdout
    assert pids(env) == running
    other = pdctl("up", "combined", "--engine", "sim", env=env, cwd=tmp_path)
    assert other.returncode == 1
    assert "`pdctl down` first" in other.stdout

    logs = pdctl("logs", "proxy", "-n", "2", env=env, cwd=tmp_path)
    assert logs.returncode == 0
    assert 1 <= len(logs.stdout.splitlines()) <= 2
    unknown = pdctl("logs", "decode-7", env=env, cwd=tmp_path)
    assert unknown.returncode == 1
    assert "there are: decode-0, monitor, prefill-0, proxy" in unknown.stdout

    down = pdctl("down", env=env, cwd=tmp_path)
    assert down.returncode == 0
    assert state(env) is None
    assert not any(map(alive, running.values()))
    assert "nothing runs" in pdctl("status", env=env, cwd=tmp_path).stdout


def test_several_combined_engines_share_the_work(env: dict[str, str], tmp_path: Path) -> None:
    up = pdctl("up", "combined", "--engine", "sim", "--combined", "2", env=env, cwd=tmp_path)
    assert up.returncode == 0, up.stdout + up.stderr

    smoke = pdctl("smoke", env=env, cwd=tmp_path)

    assert smoke.returncode == 0, smoke.stdout
    assert "combined-0: queue" in smoke.stdout
    assert "combined-1: queue" in smoke.stdout


def test_an_engine_that_died_is_shown_with_its_last_words(env: dict[str, str], tmp_path: Path) -> None:
    assert pdctl("up", "--engine", "sim", env=env, cwd=tmp_path).returncode == 0
    os.kill(pids(env)["decode-0"], signal.SIGKILL)
    until(lambda: not alive(pids(env)["decode-0"]))

    status = pdctl("status", env=env, cwd=tmp_path)
    again = pdctl("up", "--engine", "sim", env=env, cwd=tmp_path)

    assert status.returncode == 1
    assert "decode-0 ended; its log is" in status.stdout
    assert again.returncode == 1
    assert "decode-0 ended" in again.stdout
    assert "`pdctl down` clears up" in again.stdout


def test_an_engine_that_cannot_start_takes_the_others_with_it(env: dict[str, str], tmp_path: Path) -> None:
    up = pdctl("up", "--engine", "sim", env={**env, "SIM_PROFILE": "no-such-board"}, cwd=tmp_path)

    assert up.returncode == 1
    assert "ended; its log is" in up.stdout
    assert "no-such-board" in up.stdout
    assert state(env) is None
    assert "nothing runs" in pdctl("status", env=env, cwd=tmp_path).stdout


def test_a_taken_port_is_told_with_the_variable_that_moves_it(env: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", int(env["DECODE_HTTP_PORT"]))):
        up = pdctl("up", "--engine", "sim", env=env, cwd=tmp_path)

    assert up.returncode == 1
    assert f"port {env['DECODE_HTTP_PORT']} of decode-0 is taken: set DECODE_HTTP_PORT" in up.stdout


def test_an_interpreter_without_vllm_is_told_before_anything_starts(env: dict[str, str], tmp_path: Path) -> None:
    up = pdctl("up", env={**env, "ENGINE_PYTHON": sys.executable}, cwd=tmp_path)

    assert up.returncode == 1
    assert "has no vLLM: set ENGINE_PYTHON" in up.stdout
    assert state(env) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing_behind(env: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pd_control", "up", "--engine", "sim"], env=env, cwd=tmp_path, stdout=subprocess.PIPE
    ) as up:
        until(lambda: len(pids(env)) == 4)
        started = pids(env)
        up.send_signal(number)
        up.communicate(timeout=30)

    assert up.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert not any(map(alive, started.values()))
    assert state(env) is None
