"""One thread that waits for all sockets of an engine."""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.05
log = logging.getLogger(f"vllm.{__name__}")  # vLLM only shows loggers below its own name


class Loop:
    """Calls back when a socket can be read or written, when another thread asks for it, and periodically (`tick`)."""

    def __init__(self, name: str, tick: Callable[[float], None]) -> None:
        """`tick` gets the time, every 50 ms or so."""
        self._tick = tick
        self._selector = selectors.DefaultSelector()
        self._soon: deque[Callable[[], None]] = deque()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wakes)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ends = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the callbacks that were requested so far; none is called after this returns."""
        self._ends = True
        self._wake()
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(timeout=5)
        for end in (self._woken, self._waker):
            end.close()
        self._selector.close()

    def call(self, callback: Callable[[], None]) -> None:
        """Call a function in the loop's thread. Any thread may call this."""
        self._soon.append(callback)
        self._wake()

    def watch(self, sock: socket.socket, callback: Callable[[], None], *, write: bool = False) -> None:
        """Call back when the socket can be read and, if asked for, written. Only in the loop's thread."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        if sock in self._selector.get_map():
            self._selector.modify(sock, events, callback)
        else:
            self._selector.register(sock, events, callback)

    def forget(self, sock: socket.socket) -> None:
        """Stop watching this socket. Only in the loop's thread."""
        if sock.fileno() >= 0 and sock in self._selector.get_map():
            self._selector.unregister(sock)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is already awake, or has ended
            self._waker.send(b"\0")

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):  # drained already
            self._woken.recv(4096)

    def _run(self) -> None:
        ticked = time.monotonic()
        while not self._ends:
            for key, _ in self._selector.select(TICK_S):
                self._guarded(key.data)
            while self._soon:
                self._guarded(self._soon.popleft())
            now = time.monotonic()
            if now - ticked >= TICK_S:
                ticked = now
                self._guarded(lambda: self._tick(time.monotonic()))
        while self._soon:
            self._guarded(self._soon.popleft())

    @staticmethod
    def _guarded(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            # A fault in one connection must not end the thread that serves all of them.
            log.exception("P2pConnector: an event could not be handled")
