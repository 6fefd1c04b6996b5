"""KV over a separate TCP connection: works everywhere and without a GPU, but is slow."""

import contextlib
import socket
import time
from typing import Final

from pd_connector.memory.pages import HOST, HostMemory, Memory
from pd_connector.net.data import DataTransport, hang_up, read_message, receive
from pd_connector.net.transport import Invitation, Move, Site, TransportError
from pd_connector.wire.frames import frame
from pd_connector.wire.messages import ProtocolError, Write, Written

BUFFER_BYTES: Final = 4 << 20


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
        hang_up(self._sock)

    def close(self) -> None:
        self._sock.close()


class TcpTransport(DataTransport):
    """The data connection carries the bytes."""

    name = "tcp"
    kind = HOST

    def open(self, invitation: Invitation, staging: Memory) -> TcpWriter:
        """Connect a second time, for the bytes."""
        if not isinstance(staging, HostMemory):
            msg = "tcp sends from the host's memory"
            raise TransportError(msg)
        sock = self.connect(invitation)
        with contextlib.suppress(OSError):  # a limit of the system; smaller buffers work too
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        sock.settimeout(invitation.put_timeout_s)
        return TcpWriter(sock, staging)

    def serve(self, session: str, sock: socket.socket, site: Site) -> None:
        """Take pages until the connection ends."""
        while True:
            _take(session, sock, site)


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
