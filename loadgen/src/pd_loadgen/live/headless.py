"""`pd-loadgen run`: Locust without its page, in this process, with a progress bar and a closing table."""

import signal
import sys
import time
from typing import Final

import gevent
from locust.env import Environment
from rich.console import Console

from pd_loadgen.live.run import Run
from pd_loadgen.live.user import METHOD, TPOT, TTFT, LoadUser, Shell
from pd_loadgen.options import Options
from pd_loadgen.terminal import Bar, Lines, closing, status_line

# Each drawing keeps the loop busy for about a millisecond; twice a second that is far below one in a hundred stamps.
REDRAW_S: Final = 0.5


def execute(read: Options, command: list[str]) -> int:
    """Do one run; returns the exit status."""
    environment = Environment(user_classes=[LoadUser])
    shell = Shell(environment, lambda: read, command)
    runner = environment.create_local_runner()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, _stop, shell, number)
    runner.start(1, spawn_rate=1)
    while (run := shell.run) is None:
        gevent.sleep(0.01)
    _watch(run, environment)
    runner.quit()
    return _close(run)


def _stop(shell: Shell, number: int) -> None:
    """The first signal ends the run and keeps its records; the second one ends the process."""
    signal.signal(number, signal.SIG_DFL)
    if shell.run is not None:
        shell.run.stop()


def _watch(run: Run, environment: Environment) -> None:
    console = Console(stderr=True)
    shown = Bar(console) if console.is_terminal else Lines(sys.stderr, time.monotonic())
    try:
        while True:
            over = run.join(0)
            standing = run.progress()
            line = status_line(standing, _median(environment, TTFT), _median(environment, TPOT))
            shown.show(standing, line, time.monotonic())
            if over:
                return
            run.join(REDRAW_S)
    finally:
        shown.close()


def _median(environment: Environment, name: str) -> float | None:
    entry = environment.stats.entries.get((name, METHOD))
    return float(entry.median_response_time) if entry is not None else None


def _close(run: Run) -> int:
    if run.result is None:
        sys.stderr.write(f"pd-loadgen: {run.error or 'the run ended unexpectedly; the traceback is above'}\n")
        return run.exit_status
    console = Console()
    console.print(closing(run.result.manifest, run.result.summary))
    console.print(f"records: {run.result.path}", highlight=False, soft_wrap=True)
    return run.exit_status
