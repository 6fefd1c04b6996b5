"""Connections over TCP and TLS that do not block the event loop while they are made."""

import errno
import os
import socket
import ssl
from typing import Any, Final

import gevent
from gevent.hub import get_hub

from pd_contracts.records import Failure
from pd_loadgen.live.sending.tls import Secured

READ_BYTES: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 10.0
READ, WRITE = 1, 2  # what a watcher of the loop waits for


class TransportError(OSError):
    """No response came; kind and message go into the record."""

    def __init__(self, kind: str, message: str) -> None:
        """Kinds are those of `pd_contracts.records.Failure`."""
        super().__init__(message)
        self.failure = Failure(kind=kind, message=message)


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
            wait(sock, WRITE)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def secure(sock: socket.socket, context: ssl.SSLContext, host: str) -> Secured:
    """Agree on TLS over a connected socket.

    Raises:
        OSError: if the peer does not, or its certificate is not to be trusted (`ssl.SSLError` is one).
    """
    secured = Secured(context, host)
    over, answer = secured.handshake(b"")
    with gevent.Timeout(CONNECT_TIMEOUT_S, TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))):
        while True:
            if answer:
                sock.send(answer)  # a few hundred bytes into an empty buffer
            if over:
                return secured
            wait(sock, READ)
            data = sock.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
            over, answer = secured.handshake(data)


def why(error: OSError) -> str:
    """The shortest text that names the error."""
    message = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror
    return str(message or error)


def wait(sock: socket.socket, what: int) -> None:
    """Wait until the socket can be read or written, without blocking the loop."""
    hub = get_hub()
    watcher = hub.loop.io(sock.fileno(), what)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
