"""A relay between prefill and an engine's KV port that changes KV as a test asks; everything else passes unchanged."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pd_connector.net.data import read_message, receive
from pd_connector.wire.frames import frame
from pd_connector.wire.messages import Hello, ProtocolError, Write

Address = tuple[str, int]


class Relay:
    """Forwards connections. Engines reach each other through it if one says that its `host` is the relay's."""

    def __init__(self, listen: Address, target: Address) -> None:
        self._target = target
        self._zeros = False
        self._passes = threading.Event()
        self._passes.set()
        self._held = threading.Event()
        self._listener = socket.create_server(listen, backlog=64)
        self.address = f"{listen[0]}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._passes.set()
        with contextlib.suppress(OSError):  # it is not connected: this only wakes the thread
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextmanager
    def zeros(self) -> Iterator[None]:
        """KV arrives as zeros."""
        self._zeros = True
        yield
        self._zeros = False

    @contextmanager
    def holding(self) -> Iterator[threading.Event]:
        """KV stops in the middle of a page; the event says that this has happened."""
        self._held.clear()
        self._passes.clear()
        try:
            yield self._held
        finally:
            self._passes.set()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, prefill: socket.socket) -> None:
        try:
            decode = socket.create_connection(self._target, timeout=5)
        except OSError:
            prefill.close()
            return
        decode.settimeout(None)
        threading.Thread(target=_splice, args=(decode, prefill), daemon=True).start()
        with contextlib.suppress(OSError, EOFError, ProtocolError):  # whoever ended it, both ends hear of it
            hello = read_message(prefill)
            decode.sendall(frame(hello))
            while isinstance(hello, Hello) and hello.purpose == "data":
                self._pass_write(prefill, decode)
            _splice(prefill, decode)
        _end(prefill, decode)

    def _pass_write(self, prefill: socket.socket, decode: socket.socket) -> None:
        write = read_message(prefill)
        decode.sendall(frame(write))
        for size in write.sizes if isinstance(write, Write) else ():
            page = bytearray(size)
            receive(prefill, memoryview(page))
            if self._zeros:
                page = bytearray(size)
            decode.sendall(page[: size // 2])
            if not self._passes.is_set():
                self._held.set()
                self._passes.wait()
            decode.sendall(page[size // 2 :])


def _splice(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    _end(source, target)


def _end(*sockets: socket.socket) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):  # the other thread was first
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
