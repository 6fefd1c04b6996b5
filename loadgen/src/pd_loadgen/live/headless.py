"""`pd-loadgen run`: Locust without its page, with a progress bar and a closing table, in this process or with worker processes."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import gevent
from locust.env import Environment
from locust.runners import MasterRunner
from rich.console import Console

from pd_contracts.free_ports import free_port
from pd_loadgen.client.access import INSECURE
from pd_loadgen.live.processes.host import orphaned
from pd_loadgen.live.run import Run
from pd_loadgen.live.terminal import Bar, Lines, closing, status_line
from pd_loadgen.live.ui.form import connect
from pd_loadgen.live.ui.locust_stats import METHOD, TPOT, TTFT
from pd_loadgen.live.user import LoadUser, Shell
from pd_loadgen.results import run_folder
from pd_loadgen.results.manifests import EXIT_BAD, EXIT_COMPLETE
from pd_loadgen.workload.options import Options

# Drawing keeps the loop busy for about a millisecond; twice a second, that delays far less than 1% of the stamps.
REDRAW_S: Final = 0.5
WORKERS_TIMEOUT_S: Final = 60.0
_LOOPBACK: Final = "127.0.0.1"


def execute(read: Options, command: list[str]) -> int:
    """Do one run; returns the exit status."""
    if read.rerun_incomplete and run_folder.holds_complete_run(Path(read.out)):
        sys.stderr.write(f"pd-loadgen: {read.out} holds a complete run, which is kept: nothing was sent\n")
        return EXIT_COMPLETE
    if read.insecure:
        sys.stderr.write(f"pd-loadgen: warning: {INSECURE}\n")
    if read.processes == 1:
        return _lead(read, command, 0, [])
    port = free_port()
    children = _fork(read.processes, port)
    try:
        return _lead(read, command, port, children)
    finally:
        _end(children)


def _fork(count: int, port: int) -> list[int]:
    """Start workers, as Locust's --processes does: before this process starts anything that does not survive a fork."""
    children = []
    parent = os.getpid()
    for _ in range(count):
        child = gevent.fork()
        if child == 0:
            _work(port, parent)
            os._exit(0)
        children.append(child)
    return children


def _work(port: int, parent: int) -> None:
    """Be a worker until the master says quit, or is gone."""
    # a terminal's Ctrl-C reaches the whole group; the master tells the workers what to do
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    environment = Environment(user_classes=[LoadUser])
    runner = environment.create_worker_runner(_LOOPBACK, port)
    connect(environment, [])
    while not runner.greenlet.join(timeout=1) and len(runner.greenlet):
        if orphaned(parent):
            return


def _lead(read: Options, command: list[str], port: int, children: list[int]) -> int:
    environment = Environment(user_classes=[LoadUser])
    runner = environment.create_master_runner(_LOOPBACK, port) if port else environment.create_local_runner()
    shell = connect(environment, command, read)
    if shell is None or (isinstance(runner, MasterRunner) and not _gathered(runner, len(children))):
        sys.stderr.write("pd-loadgen: the worker processes did not start\n")
        return EXIT_BAD
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, _stop, shell, number)
    runner.start(max(1, len(children)), spawn_rate=max(1, len(children)))
    while (run := shell.run) is None:
        gevent.sleep(0.01)
    _watch(run, environment)
    runner.quit()
    return _close(run)


def _gathered(runner: MasterRunner, count: int) -> bool:
    deadline = time.monotonic() + WORKERS_TIMEOUT_S
    while runner.worker_count < count:
        if time.monotonic() > deadline:
            return False
        gevent.sleep(0.02)
    return True


def _end(children: list[int]) -> None:
    """Wait for the workers, which have been told to quit; kill those that do not."""
    deadline = time.monotonic() + 5
    while children:
        for child in children[:]:
            with suppress(ChildProcessError):
                ended, _ = os.waitpid(child, os.WNOHANG)
                if ended:
                    children.remove(child)
        if children and time.monotonic() > deadline:
            os.kill(children[0], signal.SIGKILL)
        time.sleep(0.02)


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
            line = status_line(standing, _latencies(environment))
            shown.show(standing, line, time.monotonic())
            if over:
                return
            run.join(REDRAW_S)
    finally:
        shown.close()


def _latencies(environment: Environment) -> dict[str, tuple[float, float]]:
    """p50 and p99 so far, ms, of the metrics that have any; Locust rounds them to two digits or so."""
    found = {name: environment.stats.entries.get((name, METHOD)) for name in (TTFT, TPOT)}
    return {
        name: (float(entry.median_response_time), float(entry.get_response_time_percentile(0.99)))
        for name, entry in found.items()
        if entry is not None and entry.num_requests
    }


def _close(run: Run) -> int:
    if run.result is None:
        sys.stderr.write(f"pd-loadgen: {run.error or 'the run ended unexpectedly; the traceback is above'}\n")
        return run.exit_status
    console = Console()
    console.print(closing(run.result.manifest, run.result.summary))
    console.print(f"records: {run.result.path}", highlight=False, soft_wrap=True)
    return run.exit_status
