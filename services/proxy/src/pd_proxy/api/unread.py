"""What a client has sent and nobody has read yet, on connections for which there is no room. No descriptor is used for looking."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# Enough of a request to tell a probe.
PROBE_BYTES: Final = 16
_DROPPED_AT_ONCE: Final = 64 * 1024
# So much is read of a request that is refused; a client that has sent more may lose the reason.
_DROPPED: Final = 16


def sent_already(transport: asyncio.Transport) -> bytes:
    """The beginning of what the client has sent; it stays unread."""
    with _socket_of(transport) as sock:
        try:
            return sock.recv(PROBE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return b""  # nothing yet, or the client has left


def drop(transport: asyncio.Transport) -> None:
    """Read what the client has sent. If a connection is closed before that, TCP resets it, and the client may lose its answer."""
    with _socket_of(transport) as sock, suppress(OSError):  # there is no more, or the client has left
        for _ in range(_DROPPED):
            if not sock.recv(_DROPPED_AT_ONCE, socket.MSG_DONTWAIT):
                break


@contextmanager
def _socket_of(transport: asyncio.Transport) -> Iterator[socket.socket]:
    sock = socket.socket(fileno=transport.get_extra_info("socket").fileno())
    try:
        yield sock
    finally:
        sock.detach()
