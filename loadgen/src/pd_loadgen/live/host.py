"""What tells machines, and processes of one machine, apart."""

import fcntl
import os
import resource
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

# Those of Python, Locust and its page, and pages that are looked at.
_OWN_FILES: Final = 256
# As many connections as there are ports for them to one address; the kernel's table of so many takes half a megabyte.
_MOST_CONNECTIONS: Final = 65_536


@cache
def boot_id() -> str:
    """Equal for processes whose monotonic clocks are one; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        # a time namespace moves the monotonic clock of a container
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return ""


def allow_many_connections(at_most: int) -> None:
    """Let this process have so many connections at once, each being an open file, as far as the system grants it; make room for them now.

    Linux doubles a process's table of open files whenever it is full, at 64, 128, 256, … files. If the process has threads, it then
    waits until no processor looks at the old table: 10 to 40 ms on a machine of many cores, in which no request leaves. A table never
    shrinks, so it is made as large as it may have to be before the first request is due.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # some systems know a limit that they do not grant, and keep the one before
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(at_most, _MOST_CONNECTIONS) + _OWN_FILES
    last = (wanted if granted == resource.RLIM_INFINITY else min(wanted, granted)) - 1
    with (
        Path(os.devnull).open("rb") as file,
        suppress(OSError),
    ):  # without room the run is late now and then, and says so
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, last))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def orphaned(parent: int) -> bool:
    """True once the process that started this one is gone."""
    return os.getppid() != parent
