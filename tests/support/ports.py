"""Ports for tests: nobody listens on them, and no outgoing connection may be given one before it is bound."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Different ports below the range that the system gives to outgoing connections.

    Raises:
        OSError: if there are not so many.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(12_000, 32_000), 2000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    msg = "not enough free ports between 12000 and 32000"
    raise OSError(msg)


def free_port() -> int:
    """One such port."""
    return free_ports(1)[0]
