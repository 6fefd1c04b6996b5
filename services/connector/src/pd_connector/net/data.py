"""A separate connection for each push connection, to the same port, over which a transport moves bytes or arranges how they move."""

import contextlib
import socket
import threading
from collections.abc import Callable

from pd_connector.net.channel import tune
from pd_connector.net.transport import Invitation, TransportError
from pd_connector.wire.frames import LENGTH, frame, length_of
from pd_connector.wire.messages import Hello, Message, ProtocolError, Refusal, Welcome, decode
from pd_connector.wire.params import split


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


def hang_up(sock: socket.socket) -> None:
    """Wake the thread that waits for this socket, which then ends."""
    with contextlib.suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def connect(transport: str, boot: str, address: str, invitation: Invitation) -> socket.socket:
    """Prefill's end: connect a second time, for this transport. Every step may take `timeout_s`.

    Raises:
        TransportError: if decode cannot be reached or refuses.
    """
    try:
        sock = tune(socket.create_connection(split(invitation.address), timeout=invitation.timeout_s))
    except OSError as error:
        msg = f"{transport}: {error}"
        raise TransportError(msg) from error
    hello = Hello(purpose="data", session=invitation.session, boot=boot, address=address, transports=[transport])
    try:
        sock.sendall(frame(hello))
        answer = read_message(sock)
    except (OSError, EOFError, ProtocolError) as error:
        sock.close()
        msg = f"{transport}: {error or 'the connection ended'}"
        raise TransportError(msg) from error
    if not isinstance(answer, Welcome):
        sock.close()
        reason = answer.reason if isinstance(answer, Refusal) else "decode answered something else"
        msg = f"{transport}: {reason}"
        raise TransportError(msg)
    return sock


class DataConnections:
    """Decode's end: at most one connection for each session, with a thread that serves it."""

    def __init__(self, transport: str, boot: str, serve: Callable[[str, socket.socket], None]) -> None:
        """`serve` runs until the connection ends or breaks the protocol, which it raises. Then the peer can no longer write."""
        self._name = f"pd-{transport}"
        self._boot = boot
        self._serve = serve
        self._quiet: Callable[[str], None] = lambda _session: None
        self._lock = threading.Lock()
        # A session's socket while its thread reads it; None before it has one.
        self._sessions: dict[str, socket.socket | None] = {}

    def open(self, quiet: Callable[[str], None]) -> None:
        """Report sessions whose peer can no longer write."""
        self._quiet = quiet

    def adopt(self, session: str, sock: socket.socket | None) -> None:
        """Admit a session, or serve its connection."""
        with self._lock:
            if sock is None:
                self._sessions.setdefault(session, None)
                return
            if self._sessions.get(session, sock) is not None:
                sock.close()  # its session has ended, or already has a socket
                return
            self._sessions[session] = sock
        threading.Thread(target=self._run, args=(session, sock), name=self._name, daemon=True).start()

    def end(self, session: str) -> None:
        """Close a session's connection; its thread reports when it has ended."""
        with self._lock:
            sock = self._sessions.get(session)
            if sock is None:
                self._sessions.pop(session, None)
            else:
                hang_up(sock)
        if sock is None:
            self._quiet(session)

    def stop(self) -> None:
        """Close all of them."""
        for session in list(self._sessions):
            self.end(session)

    def _run(self, session: str, sock: socket.socket) -> None:
        try:
            sock.settimeout(None)  # it may be silent for long; the push connection's pings tell whether the peer lives
            sock.sendall(frame(Welcome(boot=self._boot)))
            self._serve(session, sock)
        except (OSError, EOFError, ProtocolError):
            pass  # the end of the push connection is reported instead
        finally:
            sock.close()
            with self._lock:
                self._sessions.pop(session, None)
            self._quiet(session)
