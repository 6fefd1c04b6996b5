"""Sockets that stamp bytes the moment they arrive.

A read is handled in the event loop's own callback: one system call, one stamp, no greenlet switch, no parsing beyond the
framing. That is what keeps the stamps of some hundred streams, which an engine writes in one burst a step, apart by microseconds.
Reads are stamped with `time.monotonic`, the clock of every record.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.hub import get_hub

from pd_contracts.records import Failure
from pd_loadgen.exchange import Exchange
from pd_loadgen.http1 import ProtocolError, Response, Target, TruncatedError

READ_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 10.0
# Servers close idle connections after 5 s or more; a connection is not taken up again so late that both could meet.
MAX_IDLE_S = 2.0
_READ, _WRITE = 1, 2

# gevent's sockets add a Python layer to each call; waiting is done here, so the plain ones serve.
_Socket = monkey.get_original("socket", "socket")


class TransportError(OSError):
    """No response came; carries what goes into the record."""

    def __init__(self, kind: str, message: str) -> None:
        """Kinds are those of `pd_contracts.records.Failure`."""
        super().__init__(message)
        self.failure = Failure(kind=kind, message=message)


class Connection:
    """One connection, one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected, non-blocking socket."""
        self.idle_since = 0.0
        self._sock = sock
        self._recv = sock.recv
        self._watcher = get_hub().loop.io(sock.fileno(), _READ)
        self._ended = Event()
        self._response = Response()
        self._exchange = Exchange(0.0)

    def run(self, request: bytes, exchange: Exchange, timeout: float) -> None:
        """Send a request and stamp its response into `exchange`; on return the response is complete or `failure` is set."""
        self._ended.clear()
        self._response, self._exchange = Response(), exchange
        self._watcher.start(self._on_readable)
        alarm = gevent.Timeout.start_new(timeout)
        try:
            self._send(request)
            self._ended.wait()
        except gevent.Timeout as rung:
            if rung is not alarm:
                raise
            exchange.failure = Failure(kind="timeout", message=f"no complete answer within {timeout:g} s")
        finally:
            alarm.close()
            self._watcher.stop()

    @property
    def reusable(self) -> bool:
        """True if the last response leaves the connection fit for another request."""
        return self._response.reusable and self._exchange.failure is None

    def stale(self, now: float) -> bool:
        """True if an idle connection was closed by the server, or may be soon."""
        if now - self.idle_since > MAX_IDLE_S:
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True  # reset while idle: as good as closed
        return True  # closed, or bytes that nobody asked for

    def close(self) -> None:
        """Close it; the watcher goes first, because the loop must not watch a number that may be given to another file."""
        self._watcher.close()
        self._sock.close()

    def _send(self, request: bytes) -> None:
        view = memoryview(request)
        self._exchange.sent = time.monotonic()
        while view and not self._ended.is_set():
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                _wait_writable(self._sock)
            except OSError:
                # The server stopped reading. It may have said why (413, 400): the read side finds the answer or the end.
                return

    def _on_readable(self) -> None:
        try:
            data = self._recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail("truncated", f"the connection broke: {error.strerror}")
            return
        now = time.monotonic()
        response = self._response
        try:
            if data:
                body = response.feed(data)
                if body:
                    self._exchange.reads.append((now, body))
            else:
                response.eof()
        except ProtocolError as error:
            self._fail("protocol", str(error))
        except TruncatedError as error:
            self._fail("truncated", str(error))
        if self._exchange.headers_at is None and response.head is not None:
            self._exchange.headers_at, self._exchange.head = now, response.head
        if response.complete:
            self._watcher.stop()
            self._ended.set()

    def _fail(self, kind: str, message: str) -> None:
        self._exchange.failure = Failure(kind=kind, message=message)
        self._watcher.stop()
        self._ended.set()


class Pool:
    """Connections to one address; the one used last is taken first, so that few stay idle."""

    def __init__(self, target: Target) -> None:
        """Resolve the address once, so that no request waits for a name server.

        Raises:
            TransportError: if the name has no address.
        """
        self._target = target
        self._idle: list[Connection] = []
        try:
            self._addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise TransportError("connect", f"{target.host} has no address: {error.strerror}") from error

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection, and keep it if its last response allows.

        Raises:
            TransportError: if none can be made.
        """
        connection = self._take()
        try:
            yield connection
        finally:
            if connection.reusable:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale(now):
                return connection
            connection.close()
        return Connection(self._connect())

    def _connect(self) -> socket.socket:
        problem = ""
        for family, kind, protocol, _, address in self._addresses:
            sock: socket.socket = _Socket(family, kind, protocol)
            try:
                connect(sock, address)
            except OSError as error:
                sock.close()
                problem = error.strerror or str(error)
            except BaseException:
                sock.close()  # killed while connecting
                raise
            else:
                return sock
        raise TransportError("connect", f"cannot connect to {self._target.authority}: {problem}")


def connect(sock: socket.socket, address: Any) -> None:
    """Connect a socket without blocking the loop, and make it non-blocking and prompt.

    Raises:
        OSError: if the peer refuses, cannot be reached or does not answer.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        with gevent.Timeout(CONNECT_TIMEOUT_S, TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))):
            _wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _wait_writable(sock: socket.socket) -> None:
    hub = get_hub()
    watcher = hub.loop.io(sock.fileno(), _WRITE)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
