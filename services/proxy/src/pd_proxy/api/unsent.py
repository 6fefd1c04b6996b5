"""How much of what a client was sent it has not read yet."""

import asyncio
import fcntl
import sys
import termios
from typing import Final

_INT_BYTES: Final = 4


class Unsent:
    """Watches a connection whose client may be slow; a client that still reads is not stalled."""

    def __init__(self, transport: asyncio.Transport, patience_s: float) -> None:
        """A client that reads nothing for `patience_s` seconds is stalled."""
        self._transport = transport
        self._patience_s = patience_s
        self._size = 0
        self._since = 0.0

    @property
    def size(self) -> int:
        """Bytes that the client's machine has not acknowledged."""
        return self._transport.get_write_buffer_size() + _in_kernel(self._transport)

    def stalled(self, now: float) -> bool:
        """Whether the client has read nothing for too long although there is something to read. To be called about every second."""
        size = self.size
        if size != self._size or not size:
            self._size, self._since = size, now
        return now - self._since > self._patience_s


def _in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that were written to the socket and not acknowledged; 0 if the system does not report them."""
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT_BYTES)), sys.byteorder)
    except OSError:
        return 0  # the connection has just ended
