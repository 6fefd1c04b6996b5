"""A connection that carries messages in both directions and never blocks."""

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final

from pd_connector.net.loop import Loop
from pd_connector.wire.frames import Frames, frame
from pd_connector.wire.messages import Message, ProtocolError

CHUNK: Final = 1 << 18
# With more unsent messages than this, the connection counts as broken.
MAX_UNSENT_BYTES: Final = 1 << 26


def tune(sock: socket.socket) -> socket.socket:
    """Disable Nagle's algorithm, so that small messages leave at once."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Channel:
    """One connection. `heard` gets each message, `ended` the reason once, both in the loop's thread; any thread may send."""

    def __init__(
        self, number: int, sock: socket.socket, loop: Loop, heard: Callable[["Channel", Message], None]
    ) -> None:
        """`sock` must be connected; `open` starts reading from it."""
        self.number = number
        self.peer = _name(sock)
        self.last_heard = self.last_sent = 0.0
        self.heard = heard
        self.ended: Callable[[Channel, str], None] = lambda _channel, _reason: None
        self._open = True
        self._sock = sock
        self._loop = loop
        self._frames = Frames()
        self._unsent = bytearray()
        self._lock = threading.Lock()
        sock.setblocking(False)

    @property
    def is_open(self) -> bool:
        """Whether it has not ended yet."""
        return self._open

    def open(self, now: float) -> None:
        """Start reading. Only in the loop's thread."""
        self.last_heard = self.last_sent = now
        self._loop.watch(self._sock, self._ready)

    def send(self, messages: Iterable[Message], now: float) -> None:
        """Send messages; the loop sends later what the socket does not take at once."""
        data = b"".join(frame(message) for message in messages)
        if not data or not self.is_open:
            return
        self.last_sent = now
        with self._lock:
            waiting = bool(self._unsent)
            self._unsent += data
            if not waiting:
                self._flush()
            left = len(self._unsent)
        if left and not waiting:
            self._loop.call(self._watch_write)
        if left > MAX_UNSENT_BYTES:
            self._loop.call(lambda: self.close("it does not read its messages"))

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass  # the loop continues when there is room
        except OSError:
            self._unsent.clear()  # reading will report the reason

    def _watch_write(self) -> None:
        if self.is_open:
            self._loop.watch(self._sock, self._ready, write=True)

    def _ready(self) -> None:
        with self._lock:
            waiting = bool(self._unsent)
            if waiting:
                self._flush()
            done = waiting and not self._unsent
        if done:
            self._loop.watch(self._sock, self._ready)
        self._read()

    def _read(self) -> None:
        try:
            while self.is_open:
                data = self._sock.recv(CHUNK)
                if not data:
                    self.close("the connection ended")
                    return
                if not self._hand_over(data):
                    return
        except BlockingIOError:
            return
        except ProtocolError as error:
            self.close(f"it broke the protocol: {error}")
        except OSError as error:
            self.close(f"the connection broke: {error.strerror or error}")

    def _hand_over(self, data: bytes) -> bool:
        """Pass messages on until the connection ends."""
        return all(self._heard(message) for message in self._frames.feed(data))

    def _heard(self, message: Message) -> bool:
        self.heard(self, message)
        return self._open

    def detach(self) -> socket.socket:
        """Give the socket away; this channel then ends without calling `ended`. Only in the loop's thread."""
        self._open = False
        self._loop.forget(self._sock)
        return self._sock

    def close(self, reason: str) -> None:
        """End the connection. Only in the loop's thread."""
        if not self.is_open:
            return
        self._open = False
        self._loop.forget(self._sock)
        self._sock.close()
        self.ended(self, reason)


def _name(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "?"  # it has left already
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
