"""Work on several cores: the same results, and no process that outlives the command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context

import psutil
import pytest

from pd_planner import cores
from pd_planner.cores import LostError, spread


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores", lambda: 3)


def test_results_come_in_the_order_of_the_items_from_several_processes() -> None:
    def work(item: int) -> tuple[int, int]:
        time.sleep(0.01)
        return item * item, os.getpid()

    squares, processes = zip(*spread(work, range(20)), strict=True)

    assert squares == tuple(item * item for item in range(20))
    assert os.getpid() not in processes
    assert 1 < len(set(processes)) <= 3


@pytest.mark.parametrize("items", [[], [7]])
def test_a_single_item_needs_no_process(items: list[int]) -> None:
    assert spread(lambda _: os.getpid(), items) == [os.getpid()] * len(items)


def test_an_error_in_a_process_is_raised_and_the_others_are_ended() -> None:
    def work(item: int) -> int:
        if item == 1:
            msg = "one is too many"
            raise ValueError(msg)
        time.sleep(0.01 if item < 3 else 60)
        return item

    before = children()
    with pytest.raises(ValueError, match="one is too many"):
        spread(work, range(6))
    assert children() <= before


def test_a_process_that_is_killed_is_told_and_the_others_finish() -> None:
    def work(item: int) -> int:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    before = children()
    with pytest.raises(LostError, match="was ended"):
        spread(work, range(6))
    assert children() <= before


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_command_is_ended(
    ending: signal.Signals, gone: Callable[[psutil.Process], bool]
) -> None:
    code = "import time; from pd_planner import cores; cores.cores = lambda: 2; cores.spread(lambda _: time.sleep(0.05), range(10_000))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as command:
        whole = psutil.Process(command.pid)
        while len(workers := whole.children()) < 2:
            time.sleep(0.02)
        command.send_signal(ending)
        _, told = command.communicate()

    assert all(gone(worker) for worker in workers)
    assert told.count("Traceback") == (ending is signal.SIGINT)  # of this bare program, and of no worker


def test_a_process_that_begins_after_its_parent_has_ended_does_nothing() -> None:
    """It has another parent by then."""
    context = get_context("fork")
    _, answers = context.Pipe(duplex=False)
    taken, ended = context.Value("q", 0), psutil.Process().ppid()
    worker = context.Process(target=cores._serve, args=(time.sleep, range(5), taken, answers, ended))
    worker.start()
    worker.join()
    assert (worker.exitcode, taken.value) == (0, 0)


def children() -> set[psutil.Process]:
    """This process's; another test may have left one that has ended and was not waited for."""
    return set(psutil.Process().children())


@pytest.fixture(name="gone")
def _gone() -> Callable[[psutil.Process], bool]:
    def gone(process: psutil.Process) -> bool:
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            return False
        return True

    return gone
