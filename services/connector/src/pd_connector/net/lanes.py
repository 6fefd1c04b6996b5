"""Threads that copy, each in order, so that a slow peer on one thread does not delay the others."""

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(f"vllm.{__name__}")


class Lane:
    """One thread and its queue of work."""

    def __init__(self, name: str, enter: Callable[[], None]) -> None:
        """The thread calls `enter` first."""
        self._work: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._ends = False
        self._enter = enter
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """Queue a piece of work."""
        with self._wake:
            self._work.append(work)
            self._wake.notify()

    def stop(self) -> None:
        """End after the queued work."""
        with self._wake:
            self._ends = True
            self._wake.notify()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._enter()
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._work or self._ends)
                if not self._work:
                    return
                work = self._work.popleft()
            try:
                work()
            except Exception:
                # A fault with one peer must not end the thread that also serves others.
                log.exception("P2pConnector: a copy failed")
