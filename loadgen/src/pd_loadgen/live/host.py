"""What tells machines, and processes of one machine, apart."""

import os
import resource
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Equal for processes whose monotonic clocks are one; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        # a time namespace moves the monotonic clock of a container
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return ""


def allow_many_connections() -> None:
    """Raise this process's limit of open files, each connection being one, as far as it may be raised."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # some systems know a limit that they do not grant, and keep the one before
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def orphaned(parent: int) -> bool:
    """True once the process that started this one is gone."""
    return os.getppid() != parent
