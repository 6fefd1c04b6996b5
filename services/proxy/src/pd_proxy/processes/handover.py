"""The way of clients' connections from the parent to one worker: a socket over which their descriptors are sent."""

import socket
from typing import Final

# How many connections are passed on, or received, before the event loop runs anything else.
AT_ONCE: Final = 64


class Handover:
    """The parent's side.

    The parent keeps the worker's end open, too. Each connection is received once, by whoever reads first. So what a worker has not received
    when it ends or stalls is not lost: the parent takes it back.
    """

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._ours, self.theirs):
            end.setblocking(False)

    def give(self, connection: socket.socket) -> bool:
        """Send a connection; returns False if there is no room for it now."""
        try:
            socket.send_fds(self._ours, [b"\0"], [connection.fileno()])
        except OSError:
            return False
        return True

    def take_back(self) -> list[socket.socket]:
        """The connections that the worker has not received."""
        found = []
        while more := received(self.theirs):
            found += more
        return found

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


def received(handover: socket.socket) -> list[socket.socket]:
    """The connections that have been sent, but only so many at once."""
    found = []
    for _ in range(AT_ONCE):
        try:
            data, descriptors, _, _ = socket.recv_fds(handover, 1, 1)
        except OSError:
            break  # no more for now
        found += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not data:
            break
    return found
