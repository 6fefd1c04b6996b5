"""Ctrl-C in the first second of a command, while Python still imports, and a reader that leaves: no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pd_contracts.command import INTERRUPTED

ROOT = Path(__file__).parents[2]
# Presses Ctrl-C when a module is looked for, then becomes the command.
PRESSED = """
import os, runpy, signal, sys
moment, package, *words = sys.argv[1:]
class Finger:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finger())
sys.argv = [package, *words]
runpy.run_module(package, run_name="__main__", alter_sys=True)
"""


def interrupted(moment: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRESSED, moment, *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((package, *words), id=package)
        for package, *words in (
            ("pd_control", "status"),
            ("pd_loadgen", "run"),
            ("pd_analysis", "report"),
            ("pd_planner", "--rate", "1"),
            ("pd_monitor", "--help"),
            ("pd_proxy", "--help"),
            ("pd_simulator", "--help"),
            ("pd_engine", "plan"),
        )
    ],
)
def test_ctrl_c_while_a_command_imports_ends_it_without_a_traceback(words: tuple[str, ...]) -> None:
    done = interrupted("pd_contracts.settings", *words)

    assert (done.returncode, done.stdout + done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("locust", "pd_loadgen", "run", "--url", "http://127.0.0.1:9", "--rate", "1"), id="Locust"),
        pytest.param(("pd_planner.main", "pd_control", "plan", "--rate", "1"), id="planner"),
        pytest.param(("matplotlib", "pd_analysis", "report"), id="plots"),
    ],
)
def test_ctrl_c_while_a_running_command_imports_more(words: tuple[str, ...]) -> None:
    done = interrupted(*words)

    assert (done.returncode, done.stdout + done.stderr) == (INTERRUPTED, "")


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "pd_planner"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_connection_that_breaks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text("def main():\n    raise BrokenPipeError('the engine has gone')\n")
    script = "import sys; from pd_contracts.command import run; sys.exit(run('breaking'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "the engine has gone" in done.stderr
