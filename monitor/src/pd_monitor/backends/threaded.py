"""Keeps calls that may block off the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pd_monitor.reading import Reading


class BlockingReader(Protocol):
    """A back end whose calls block."""

    name: str
    simulated: bool

    def sample(self) -> Reading: ...

    def close(self) -> None: ...


class Threaded:
    """Runs a blocking reader on one thread of its own: a driver call may take milliseconds, or hang for seconds."""

    def __init__(self, reader: BlockingReader) -> None:
        """Take over the reader; nobody else may call it."""
        self.name = reader.name
        self.simulated = reader.simulated
        self._reader = reader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=reader.name)

    async def sample(self) -> Reading:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.sample)

    async def close(self) -> None:
        """Close the reader behind the call in flight, without waiting for it."""
        self._thread.submit(self._reader.close)
        self._thread.shutdown(wait=False)
