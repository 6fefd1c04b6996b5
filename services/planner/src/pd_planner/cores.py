"""Work that is spread over the processor's cores: the same results in the same order, sooner.

The pools of the standard library want work that can be pickled; here a forked process has it already, with all that it refers to.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Final, TypeVar, cast

from pd_analysis.words.language import tr

T = TypeVar("T")
R = TypeVar("R")

_MOST: Final = 16  # more processes than that wait for their parent's memory


class LostError(Exception):
    """A process was ended before its work was done; the message says so."""


def cores() -> int:
    """Cores that this process may use; 1 where processes cannot be forked, which only Linux does without harm."""
    return min(_MOST, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1


def spread(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What `work` makes of each item; items that take long should come first.

    Raises:
        LostError: if a process is gone. Whatever `work` raises is raised here.
    """
    processes = min(cores(), len(items))
    if processes < 2:
        return [work(item) for item in items]
    context = get_context("fork")
    taken = context.Value("q", 0)
    found: dict[int, R] = {}
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_serve, args=(work, items, taken, theirs, os.getpid()), daemon=True)
            worker.start()
            theirs.close()
            workers[ours] = worker
        while workers:
            for ready in cast("list[Connection]", wait(list(workers))):
                try:
                    number, result = ready.recv()
                except EOFError:
                    workers.pop(ready).join()
                    continue
                if isinstance(result, BaseException):
                    raise result
                found[number] = result
    finally:
        for worker in workers.values():
            worker.kill()
            worker.join()
    if len(found) < len(items):
        raise LostError(tr("a process of this command was ended, perhaps because memory was short; run it again"))
    return [found[number] for number in range(len(items))]


def _serve(work: Callable[[T], R], items: Sequence[T], taken: Any, answers: Connection, parent: int) -> None:
    """Take the next item until none is left, or until nobody waits for results: the `parent` may end before this process has begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it, too, and ends this process
    while os.getppid() == parent:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(items):
            return
        try:
            result: object = work(items[number])
        except Exception as error:  # noqa: BLE001 - it is raised where the work was asked for
            result = error
        answers.send((number, result))
