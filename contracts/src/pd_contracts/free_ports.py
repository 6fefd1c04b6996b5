"""Free ports, for processes that must be given a port before they bind it."""

import os
import random
import socket
import sys
from collections import deque
from typing import Final

# Below the kernel's range for outgoing connections, so that they stay free.
FIRST: Final = 12_000
LAST: Final = 31_900
_TRIES: Final = 2000
# A claim is dropped after this many later ones; by then its port has long been bound.
_MOST_CLAIMS: Final = 128
_claims: Final[deque[int]] = deque()


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


def claim(port: int) -> bool:
    """True if `port` is free, and nobody who asked here has claimed it to bind it soon.

    The claim ends with this process, or after many later ones. Only Linux keeps claims; elsewhere this is `is_free`.
    """
    return is_free(port) and (sys.platform != "linux" or _register(port))


def _register(port: int) -> bool:
    """Bind a name of the network namespace, which is where ports live too; the kernel frees it with the process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(f"\0pdstack-port-{port}")
        except OSError:
            return False  # somebody else has the name
        _claims.append(holder.detach())
    while len(_claims) > _MOST_CLAIMS:
        os.close(_claims.popleft())
    return True


def free_ports(count: int) -> list[int]:
    """Different free ports, chosen at random and claimed: processes that ask at the same time get different ones.

    Raises:
        OSError: if there are not enough.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(FIRST, LAST), _TRIES):
        if claim(port):
            found.append(port)
        if len(found) == count:
            return found
    msg = f"not enough free ports between {FIRST} and {LAST}"
    raise OSError(msg)


def free_port() -> int:
    return free_ports(1)[0]
