"""Free ports, for processes that must be given a port before they bind it."""

import random
import socket
from typing import Final

# Below the kernel's range for outgoing connections, so that they stay free.
FIRST: Final = 12_000
LAST: Final = 31_900
_TRIES: Final = 2000


def is_free(port: int, host: str = "0.0.0.0") -> bool:
    """True if `port` can be bound now; on every interface unless a host is named."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection that still lingers is no reason to refuse, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Different free ports, chosen at random so that two who ask at the same time rarely meet.

    Raises:
        OSError: if there are not enough.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(FIRST, LAST), _TRIES):
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    msg = f"not enough free ports between {FIRST} and {LAST}"
    raise OSError(msg)


def free_port() -> int:
    return free_ports(1)[0]
