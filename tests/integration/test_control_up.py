"""`pdctl up`, `status`, `smoke`, `logs` and `down` with simulated engines as local processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from support.control import alive, environment, pdctl
from support.waiting import until

from pd_control.supervision.state import State, Store


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
    assert status.stdout.startswith("SIMULATED: ")
    for name, pid in running.items():
        line = next(line for line in status.stdout.splitlines() if line.startswith(name))
        assert str(pid) in line
        assert "ready" in line or "up" in line

    smoke = pdctl("smoke", env=env, cwd=tmp_path)
    assert smoke.returncode == 0, smoke.stdout
    assert "\nSIMULATED: " in smoke.stdout
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
    up = pdctl("up", "--engine", "sim", env={**env, "PING_KEY_FILE": "/nowhere"}, cwd=tmp_path)

    assert up.returncode == 1
    assert "PING_KEY_FILE=/nowhere: there is no such file or folder; its log is" in up.stdout
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
    assert f"{sys.executable} has no vLLM" in "".join(up.stdout.split("\n"))
    assert "→ set ENGINE_PYTHON to one that has" in up.stdout
    assert "nothing was started" in up.stdout
    assert state(env) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing_behind(env: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pd_control", "up", "--engine", "sim"], env=env, cwd=tmp_path, stdout=subprocess.PIPE
    ) as up:
        until(lambda: len(pids(env)) == 4)
        started = pids(env)
        up.send_signal(number)
        up.communicate(timeout=60)

    assert up.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert not any(map(alive, started.values()))
    assert state(env) is None


def test_the_next_start_ends_what_a_killed_one_left(env: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pd_control", "all", "--engine", "sim"], env=env, cwd=tmp_path, stdout=subprocess.PIPE
    ) as up:
        until(lambda: pids(env))
        up.kill()
    left = pids(env)
    assert any(map(alive, left.values()))

    again = pdctl("all", "--engine", "sim", env=env, cwd=tmp_path)

    assert again.returncode == 0, again.stdout
    assert "ended the leftovers of an interrupted start of disagg 1P1D" in again.stdout
    assert not any(map(alive, left.values()))
    assert len(pids(env)) == 4


def test_what_was_started_but_not_yet_written_down_is_found_by_its_mark(env: dict[str, str], tmp_path: Path) -> None:
    logs = Store(Path(env["STATE_DIR"])).logs
    code = "import time; time.sleep(60)"
    with (
        subprocess.Popen([sys.executable, "-c", code], env={**env, "PDCTL_LOGS": str(logs)}) as stray,
        subprocess.Popen([sys.executable, "-c", code], env={**env, "PDCTL_LOGS": str(logs / "other")}) as stranger,
    ):
        until(lambda: b"PDCTL_LOGS" in Path(f"/proc/{stray.pid}/environ").read_bytes())
        assert pdctl("all", "--engine", "sim", env=env, cwd=tmp_path).returncode == 0
        assert stray.poll() is None  # nothing says that it is ours before there is something to clear up

        assert pdctl("down", env=env, cwd=tmp_path).returncode == 0

        assert stray.wait(60) == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("POLICY", "round_robbin", "proxy cannot start: POLICY='round_robbin'"),
        ("SIM_PROFILE", "h300", "prefill-0 cannot start: SIM_PROFILE: no profile 'h300': expected one of demo"),
        ("SIM_FAULTS", "[", "prefill-0 cannot start: SIM_FAULTS"),
        ("MONITOR_INTERVAL_S", "fast", "monitor cannot start: MONITOR_INTERVAL_S='fast'"),
    ],
)
def test_a_mistyped_setting_of_a_process_is_refused_before_any_starts(
    env: dict[str, str], tmp_path: Path, variable: str, value: str, sentence: str
) -> None:
    up = pdctl("up", "--engine", "sim", env={**env, variable: value}, cwd=tmp_path)

    assert (up.returncode, pids(env)) == (2, {})
    assert sentence in up.stdout
    assert not list((tmp_path / "state").rglob("*.log"))


def test_two_deployments_live_side_by_side(env: dict[str, str], tmp_path: Path) -> None:
    assert pdctl("all", "--engine", "sim", env=env, cwd=tmp_path).returncode == 0
    other = environment(tmp_path / "other")  # ports that are free beside the first one's
    try:
        assert pdctl("all", "--engine", "sim", env=other, cwd=tmp_path).returncode == 0
        crowded = pdctl("all", "--engine", "sim", env={**other, "STATE_DIR": env["STATE_DIR"]}, cwd=tmp_path)
        assert pdctl("down", env=env, cwd=tmp_path).returncode == 0
        smoke = pdctl("smoke", env=other, cwd=tmp_path)
    finally:
        pdctl("down", env=other, cwd=tmp_path)

    assert crowded.returncode == 1
    assert "or give this one its own ports and STATE_DIR" in crowded.stdout
    assert smoke.returncode == 0, smoke.stdout


def test_parts_in_terminals_make_a_deployment(env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pd_control"]
    words = [["proxy"], ["prefill", "--engine", "sim"], ["decode", "--engine", "sim"]]
    terminals = [subprocess.Popen([*command, *one], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL) for one in words]
    try:
        until(lambda: pdctl("smoke", env=env, cwd=tmp_path).returncode == 0, 30)
        status = pdctl("status", env=env, cwd=tmp_path)
        again = pdctl("prefill", "--engine", "sim", env=env, cwd=tmp_path)
        terminals[0].send_signal(signal.SIGINT)
        terminals[0].wait(20)
        down = pdctl("down", env=env, cwd=tmp_path)
        ended = [terminal.wait(60) for terminal in terminals]
    finally:
        for terminal in terminals:
            terminal.kill()
            terminal.wait()

    assert status.returncode == 0, status.stdout
    assert [line.split()[0] for line in status.stdout.splitlines()[2:]] == ["decode-0", "prefill-0", "proxy"]
    assert all(str(terminal.pid) in status.stdout for terminal in terminals)  # pdctl became the process
    assert "prefill-0 already runs as process" in again.stdout
    assert "stop decode-0, prefill-0, in other terminals" in down.stdout
    assert ended == [0, 0, 0]


def test_the_menu_does_by_number_what_the_commands_do(env: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pd_control", "menu", "--engine", "sim"],
        env={**env, "COLUMNS": "160"},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as menu:
        said, _ = menu.communicate("77\n4\n5\n6\n0\n", timeout=100)

    assert menu.returncode == 0
    assert "'77' is not in the menu" in said
    for words in (
        "4 everything, in the background pdctl all --engine sim",
        "disagg 1P1D is ready at",
        "no errors, no warnings",
        "same answer: the streamed answer equals the plain one",
        f"HTTP_PROXY_PORT {env['HTTP_PROXY_PORT']} environment",
    ):
        assert words in " ".join(said.split())
    assert len(pids(env)) == 4


def test_a_node_without_docker_and_without_the_tools_of_reports_runs_processes(
    env: dict[str, str], tmp_path: Path
) -> None:
    # As on a GPU node where only vLLM's packages are: what is not there is made impossible to import.
    missing = ("docker", "locust", "gevent", "pandas", "matplotlib", "yaml")
    bare = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from pd_control.main import main; "
    for words in (["all", "--engine", "sim"], ["status"], ["smoke"], ["down"]):
        done = subprocess.run(
            [sys.executable, "-c", f"{bare}sys.exit(main({words!r}))"],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_runs_from_the_sources_with_a_given_interpreter(env: dict[str, str], tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "pdctl"

    done = subprocess.run(
        [script, "config"],
        env={**env, "PDCTL_PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert env["PREFILL_KV_PORT"] in done.stdout


def test_errors_that_the_doctor_finds_can_be_overruled(env: dict[str, str], tmp_path: Path) -> None:
    wrong = {**env, "VLLM_HOST_IP": "192.0.2.1"}  # an address for documentation, which no host has

    refused = pdctl("decode", "--engine", "sim", env=wrong, cwd=tmp_path)
    told = pdctl("doctor", "--engine", "sim", "--json", env=wrong, cwd=tmp_path)
    forced = pdctl("doctor", "--engine", "sim", env=env, cwd=tmp_path)

    assert refused.returncode == 1
    assert "192.0.2.1 is not an address of this host" in refused.stdout
    report = msgspec.json.decode(told.stdout)
    assert (told.returncode, report["ok"]) == (1, False)
    assert [f["code"] for f in report["findings"] if f["level"] == "error"] == ["address-foreign"]
    assert report["facts"]["machine"]["foreign"] == ["192.0.2.1"]
    assert forced.returncode == 0
