"""Sockets that stamp bytes the moment they arrive.

A read is handled in the event loop's own callback: one system call, no greenlet switch, no parsing beyond the framing. Its stamp
is the kernel's, taken as the packet came (`kernel_stamps`), or else the clock's right after the call. That is what keeps the stamps of some
hundred streams, which an engine writes in one burst a step, apart by microseconds.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.hub import get_hub

from pd_contracts.http_answers import AnswerReader, ProtocolError
from pd_contracts.records import Failure
from pd_loadgen.client.address import Target
from pd_loadgen.client.exchange import Exchange
from pd_loadgen.live.sending.connecting import READ, READ_BYTES, WRITE, TransportError, connect, secure, wait, why
from pd_loadgen.live.sending.kernel_stamps import ANCILLARY_BYTES, Stamps, ask
from pd_loadgen.live.sending.tls import Secured

# Servers close idle connections after 5 s or more; a connection is reused only well before that, so that a request never meets the close.
MAX_IDLE_S = 2.0

# gevent's sockets add a Python layer to each call; waiting is done here, so the plain ones serve.
_Socket = monkey.get_original("socket", "socket")


class Connection:
    """One connection, one request at a time."""

    def __init__(self, sock: socket.socket, stamps: Stamps, secured: Secured | None = None) -> None:
        """Take over a connected, non-blocking socket, and the TLS that was agreed upon."""
        self.idle_since = 0.0
        self._sock, self._stamps, self._secured = sock, stamps, secured
        self._receive = self._stamped if ask(sock) else self._plain
        self._before = 0.0
        self._watcher = get_hub().loop.io(sock.fileno(), READ)
        self._ended = Event()
        self._reader = AnswerReader()
        self._exchange = Exchange(0.0)

    def run(self, request: bytes, exchange: Exchange, timeout: float) -> None:
        """Send a request and stamp its response into `exchange`; on return the response is complete or `failure` is set."""
        self._ended.clear()
        self._reader.next()
        self._exchange = exchange
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
        return self._reader.reusable and self._exchange.failure is None

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
        return True  # closed, or unsolicited bytes

    def close(self) -> None:
        """Close it; the watcher goes first, because the loop must not watch a number that may be given to another file."""
        self._watcher.close()
        self._sock.close()
        self._reader.close()

    def _send(self, request: bytes) -> None:
        view = memoryview(request if self._secured is None else self._secured.wrap(request))
        self._exchange.sent = self._before = time.monotonic()
        while view and not self._ended.is_set():
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                wait(self._sock, WRITE)
            except OSError:
                # The server stopped reading. It may have said why (413, 400): the read side finds the answer or the end.
                return

    def _stamped(self) -> tuple[float, bytes]:
        """Read, with the kernel's stamp: recvmsg costs half a microsecond more than recv."""
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        now = time.monotonic()
        if not data:
            return now, data
        self._before = self._stamps.of(ancillary, now, self._before)
        return self._before, data

    def _plain(self) -> tuple[float, bytes]:
        data = self._sock.recv(READ_BYTES)
        return time.monotonic(), data

    def _on_readable(self) -> None:
        try:
            at, data = self._receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._fail("truncated", f"the connection broke: {error.strerror}")
            return
        try:
            self._take(at, data)
        except ProtocolError as error:
            self._fail("protocol", str(error))
        except ssl.SSLError as error:
            self._fail("truncated", f"TLS failed: {error.reason}")
        reader = self._reader
        if self._exchange.headers_at is None and reader.status:
            self._exchange.headers_at, self._exchange.head = at, reader.head
        if reader.complete:
            self._exchange.end = at
            self._watcher.stop()
            self._ended.set()

    def _take(self, at: float, data: bytes) -> None:
        """Hand on what was read; nothing is the end of the connection."""
        reader = self._reader
        if not data:
            if not reader.eof():
                when = "in the middle of the answer" if reader.begun else "before an answer came"
                self._fail("truncated", f"the server closed the connection {when}")
            return
        plain = data if self._secured is None else self._secured.unwrap(data)
        if plain and (body := reader.feed(plain)):
            self._exchange.reads.append((at, body))

    def _fail(self, kind: str, message: str) -> None:
        self._exchange.failure = Failure(kind=kind, message=message)
        self._watcher.stop()
        self._ended.set()


class Pool:
    """Connections to one address; the one used last is taken first, so that few stay idle.

    Attributes:
        stamps: how late reads were, over all connections.
    """

    def __init__(self, target: Target, context: ssl.SSLContext | None = None) -> None:
        """Resolve the address once, so that no request waits for a name server. `context` is there for https.

        Raises:
            TransportError: if the name has no address.
        """
        self.stamps = Stamps()
        self._target, self._context = target, context
        self._idle: list[Connection] = []
        # the kernel begins to stamp some time after the first socket asked it to, and ends with the last
        self._asking: socket.socket = _Socket()
        ask(self._asking)
        try:
            self._addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError as error:
            self._asking.close()
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
        self._asking.close()
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale(now):
                return connection
            connection.close()
        sock = self._connect()
        if self._context is None:
            return Connection(sock, self.stamps)
        try:
            return Connection(sock, self.stamps, secure(sock, self._context, self._target.host))
        except (OSError, TimeoutError) as error:
            sock.close()
            raise TransportError(
                "connect", f"the TLS handshake with {self._target.authority} failed: {why(error)}"
            ) from error
        except BaseException:
            sock.close()  # killed meanwhile
            raise

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
