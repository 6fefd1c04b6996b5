"""Background tasks that outlive the request that started them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import Any, TypeVar

from pd_proxy.errors import ProxyError

T = TypeVar("T")
logger = logging.getLogger(__name__)


async def result_of(
    task: "asyncio.Task[T]",
    timeout_s: float | None = None,
    in_time: Callable[[], bool] | None = None,
    over: "asyncio.Future[None] | None" = None,
) -> T:
    """Wait for a task, which goes on if the waiter is cancelled or waits no longer.

    It does what `asyncio.timeout` around `asyncio.shield` would do at twice the cost. A task that sets `over` as the last thing it does
    wakes the waiter a turn of the event loop earlier than its end does.

    Raises:
        TimeoutError: if after `timeout_s` the task has not ended, and `in_time`, if given, does not say that the part of it with this
            limit has.
    """
    loop = task.get_loop()
    ended = loop.create_future() if over is None else over

    def wake(*_: object) -> None:
        tell(ended)

    def look() -> None:
        if in_time is None or not in_time():
            wake()

    task.add_done_callback(wake)
    timer = loop.call_later(timeout_s, look) if timeout_s is not None else None
    try:
        await ended
    finally:
        task.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()
    if not task.done():
        raise TimeoutError
    return task.result()


def tell(over: "asyncio.Future[None]") -> None:
    """Wake what waits for this, if that has not been done."""
    if not over.done():
        over.set_result(None)


class Tasks:
    """Holds tasks until they end; asyncio itself keeps only weak references."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task; a caller that needs its result awaits it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Looked up once, because that is a system call."""
        return asyncio.get_running_loop()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ProxyError):
            logger.error("background task failed", exc_info=error)

    async def finish(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the tasks, and those that they start meanwhile, to end; then cancel the rest."""
        loop = self._loop
        end = loop.time() + timeout_s
        while self._tasks and loop.time() < end:
            await asyncio.wait(self._tasks, timeout=end - loop.time())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
