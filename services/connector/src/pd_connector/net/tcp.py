"""KV over a separate TCP connection: works everywhere and without a GPU, but is slow."""

import contextlib
import socket
import threading
import time
from typing import Final

from pd_connector.memory.pages import HOST, HostMemory, Memory
from pd_connector.net.channel import tune
from pd_connector.net.transport import Invitation, Move, Site, TransportError
from pd_connector.wire.frames import LENGTH, frame, length_of
from pd_connector.wire.messages import Hello, Message, ProtocolError, Refusal, Welcome, Write, Written, decode
from pd_connector.wire.params import split

BUFFER_BYTES: Final = 4 << 20


def receive(sock: socket.socket, into: memoryview) -> None:
    """Fill a buffer from a socket.

    Raises:
        EOFError: if the connection ends before.
    """
    while into:
        size = sock.recv_into(into)
        if not size:
            raise EOFError
        into = into[size:]


def read_message(sock: socket.socket) -> Message:
    """Read one message from a blocking socket.

    Raises:
        EOFError, ProtocolError, OSError: if no valid message arrives.
    """
    head = bytearray(LENGTH.size)
    receive(sock, memoryview(head))
    body = bytearray(length_of(head))
    receive(sock, memoryview(body))
    return decode(body)


class TcpWriter:
    """Sends pages and waits until they have arrived."""

    alone = True

    def __init__(self, sock: socket.socket, staging: HostMemory) -> None:
        """`sock` has already sent its hello."""
        self._sock = sock
        self._staging = staging

    def write(self, moves: list[Move]) -> float:
        """Send pages, one after the other, and wait for the answer."""
        begun = time.perf_counter()
        pages = [self._staging.page(move.source, move.size) for move in moves]
        try:
            self._sock.sendall(frame(Write(pages=[move.target for move in moves], sizes=[move.size for move in moves])))
            for page in pages:
                self._sock.sendall(page)
            if not isinstance(read_message(self._sock), Written):
                msg = "decode answered something else"
                raise TransportError(msg)
        except (OSError, EOFError, ProtocolError) as error:
            msg = f"tcp: {error or 'the connection ended'}"
            raise TransportError(msg) from error
        return time.perf_counter() - begun

    def abort(self) -> None:
        """Wake the thread that waits for the peer."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


class TcpTransport:
    """One connection for data beside each push connection, to the same port."""

    name = "tcp"
    kind = HOST

    def __init__(self, boot: str, address: str) -> None:
        self._boot = boot
        self._address = address
        self._site: Site | None = None
        self._lock = threading.Lock()
        # A session's data socket while its thread reads it; None before it has one.
        self._sessions: dict[str, socket.socket | None] = {}

    def open(self, invitation: Invitation, staging: Memory) -> TcpWriter:
        """Connect a second time, for the bytes."""
        if not isinstance(staging, HostMemory):
            msg = "tcp sends from the host's memory"
            raise TransportError(msg)
        try:
            sock = tune(socket.create_connection(split(invitation.address), timeout=invitation.timeout_s))
            with contextlib.suppress(OSError):  # a limit of the system; smaller buffers work too
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            hello = Hello(purpose="data", session=invitation.session, boot=self._boot, address=self._address)
            sock.sendall(frame(hello))
            answer = read_message(sock)
        except (OSError, EOFError, ProtocolError) as error:
            msg = f"tcp: {error or 'the connection ended'}"
            raise TransportError(msg) from error
        if not isinstance(answer, Welcome):
            sock.close()
            reason = answer.reason if isinstance(answer, Refusal) else "decode answered something else"
            msg = f"tcp: {reason}"
            raise TransportError(msg)
        sock.settimeout(invitation.put_timeout_s)
        return TcpWriter(sock, staging)

    def listen(self, site: Site) -> dict[str, str]:
        """The engine's own port takes the data connections, too."""
        self._site = site
        return {}

    def adopt(self, session: str, sock: socket.socket | None) -> None:
        """Serve a session's data connection."""
        with self._lock:
            if sock is None:
                self._sessions.setdefault(session, None)
                return
            if self._sessions.get(session, sock) is not None:
                sock.close()  # its session has ended, or already has a socket
                return
            self._sessions[session] = sock
        threading.Thread(target=self._serve, args=(session, sock), name="pd-tcp", daemon=True).start()

    def end(self, session: str) -> None:
        """Close the data connection; its thread reports when it has ended."""
        with self._lock:
            sock = self._sessions.get(session)
            if sock is None:
                self._sessions.pop(session, None)
            else:
                with contextlib.suppress(OSError):  # it has ended by itself
                    sock.shutdown(socket.SHUT_RDWR)
        if sock is None and self._site is not None:
            self._site.quiet(session)

    def stop(self) -> None:
        """Close all data connections."""
        for session in list(self._sessions):
            self.end(session)

    def _serve(self, session: str, sock: socket.socket) -> None:
        site = self._site
        try:
            sock.settimeout(None)  # it may be silent for long; the push connection's pings tell whether the peer lives
            sock.sendall(frame(Welcome(boot=self._boot)))
            while site is not None:
                self._take(session, sock, site)
        except (OSError, EOFError, ProtocolError):
            pass  # the end of the push connection is reported instead
        finally:
            sock.close()
            with self._lock:
                self._sessions.pop(session, None)
            if site is not None:
                site.quiet(session)

    @staticmethod
    def _take(session: str, sock: socket.socket, site: Site) -> None:
        message, landing = read_message(sock), site.landing()
        if not isinstance(message, Write) or len(message.pages) != len(message.sizes):
            msg = "no write"
            raise ProtocolError(msg)
        fits = all(0 < size <= landing.page_bytes for size in message.sizes)
        if not isinstance(landing, HostMemory) or not fits or not site.may_write(session, message.pages):
            msg = "a write to pages that it was not given"
            raise ProtocolError(msg)
        for page, size in zip(message.pages, message.sizes, strict=True):
            receive(sock, landing.page(page, size))
        sock.sendall(frame(Written()))
