"""TLS apart from the socket: the loop reads and stamps encrypted bytes, and this module decrypts them."""

import contextlib
import ssl
from typing import Final

_READ_BYTES: Final = 64 * 1024


class Secured:
    """The TLS of one connection; it holds no socket."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        """Begin as the client of `host`, whose name the certificate must have."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def handshake(self, data: bytes) -> tuple[bool, bytes]:
        """Take received bytes; returns whether the handshake is over, and what to send.

        Raises:
            ssl.SSLError: if the peers do not agree, or the certificate is not to be trusted.
        """
        if data:
            self._incoming.write(data)
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    def wrap(self, data: bytes) -> bytes:
        """Encrypt plain bytes."""
        self._session.write(data)
        return self._outgoing.read()

    def unwrap(self, data: bytes) -> bytes:
        """Decrypt received bytes; empty if a TLS record is not complete yet.

        Raises:
            ssl.SSLError: if it is no TLS of this session.
        """
        self._incoming.write(data)
        parts = []
        # an end of the session is followed by the end of the connection, and then counts
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while part := self._session.read(_READ_BYTES):
                parts.append(part)
        return b"".join(parts)
