"""Background tasks that outlive the request that started them."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from pd_proxy.errors import ProxyError

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Tasks:
    """Holds tasks until they end; asyncio itself keeps only weak references."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task; a caller that needs its result awaits it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ProxyError):
            logger.error("background task failed", exc_info=error)

    async def finish(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the tasks, and those that they start meanwhile, to end; then cancel the rest."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while self._tasks and loop.time() < end:
            await asyncio.wait(self._tasks, timeout=end - loop.time())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
