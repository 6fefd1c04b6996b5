"""A separate connection for each push connection, to the same port, over which a transport moves bytes or arranges how they move."""

import contextlib
import socket
import threading
from abc import ABC, abstractmethod

from pd_connector.net.channel import tune
from pd_connector.net.transport import Invitation, Site, TransportError
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


class DataTransport(ABC):
    """A transport with such connections. At decode's end there is at most one for each session, with a thread that serves it.

    Attributes:
        name, kind: as in `Transport`.
    """

    name: str
    kind: str
    _site: Site  # set by `listen`, which comes before the first session

    def __init__(self, boot: str, address: str) -> None:
        """`boot` and `address` are this engine's."""
        self._boot = boot
        self._address = address
        self._lock = threading.Lock()
        # A session's socket while its thread reads it; None before it has one.
        self._sessions: dict[str, socket.socket | None] = {}

    # Prefill

    def connect(self, invitation: Invitation) -> socket.socket:
        """Connect a second time, for this transport. Every step may take `timeout_s`.

        Raises:
            TransportError: if decode cannot be reached or refuses.
        """
        try:
            sock = tune(socket.create_connection(split(invitation.address), timeout=invitation.timeout_s))
        except OSError as error:
            msg = f"{self.name}: {error}"
            raise TransportError(msg) from error
        session, names = invitation.session, [self.name]
        hello = Hello(purpose="data", session=session, boot=self._boot, address=self._address, transports=names)
        with contextlib.ExitStack() as opened:
            opened.callback(sock.close)
            try:
                sock.sendall(frame(hello))
                answer = read_message(sock)
            except (OSError, EOFError, ProtocolError) as error:
                msg = f"{self.name}: {error or 'the connection ended'}"
                raise TransportError(msg) from error
            if not isinstance(answer, Welcome):
                reason = answer.reason if isinstance(answer, Refusal) else "decode answered something else"
                msg = f"{self.name}: {reason}"
                raise TransportError(msg)
            opened.pop_all()
        return sock

    # Decode

    def listen(self, site: Site) -> dict[str, str]:
        """The engine's own port takes the data connections, too."""
        self._site = site
        return {}

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
        threading.Thread(target=self._run, args=(session, sock), name=f"pd-{self.name}", daemon=True).start()

    def end(self, session: str) -> None:
        """Close a session's connection; its thread reports when it has ended."""
        with self._lock:
            sock = self._sessions.get(session)
            if sock is None:
                self._sessions.pop(session, None)
            else:
                hang_up(sock)
        if sock is None:
            self._site.quiet(session)

    def stop(self) -> None:
        """Close all of them."""
        for session in list(self._sessions):
            self.end(session)

    @abstractmethod
    def serve(self, session: str, sock: socket.socket, site: Site) -> None:
        """Serve a connection until it ends or breaks the protocol. When this returns, the peer can no longer write.

        Raises:
            EOFError, ProtocolError, OSError: if the connection ended or broke the protocol.
        """

    def _run(self, session: str, sock: socket.socket) -> None:
        try:
            sock.settimeout(None)  # it may be silent for long; the push connection's pings tell whether the peer lives
            sock.sendall(frame(Welcome(boot=self._boot)))
            self.serve(session, sock, self._site)
        except (OSError, EOFError, ProtocolError):
            pass  # the end of the push connection is reported instead
        finally:
            sock.close()
            with self._lock:
                self._sessions.pop(session, None)
            self._site.quiet(session)
