"""Starts worker processes, with their listening sockets and the socket to their parent.

All workers listen on one port (SO_REUSEPORT), each on a socket of its own, and the kernel spreads connections evenly over these. With one
socket for all, most connections would go to the worker that happens to be quickest.
"""

import asyncio
import socket
import sys


def listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """One socket per worker, all bound to one port; the workers will listen.

    Raises:
        OSError: if the port cannot be opened, or another program listens there, even if it would share the port.
    """
    _bound(host, port, shared=False).close()
    return [_bound(host, port, shared=True) for _ in range(count)]


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found


async def spawned(descriptors: tuple[int, ...]) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """A new worker process that inherits the descriptors, and this end of the socket to it.

    Raises:
        OSError: if the system has no room for it.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        # -P: modules in the current folder are not imported.
        command = (sys.executable, "-P", "-m", "pd_proxy.processes.worker", str(theirs.fileno()))
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(), *descriptors)
            )
        except BaseException:
            ours.close()
            raise
    return process, ours
