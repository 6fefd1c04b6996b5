"""Open files of a process that has very many connections."""

import fcntl
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

# Files of Python and its libraries, and connections of people who look at its pages.
_OWN_FILES: Final = 256
# One address has no more ports for connections; the kernel's table of this size takes half a megabyte.
MOST_CONNECTIONS: Final = 65_536


def allow_many_connections(at_most: int = MOST_CONNECTIONS) -> None:
    """Raise the limit of open files for this number of connections, as far as the system allows, and make room for them now.

    Linux doubles a process's table of open files whenever it is full, at 64, 128, 256, … files. If the process has threads, it then
    waits until no CPU uses the old table: 10 to 40 ms on a machine of many cores, in which the process does nothing else. A table
    never shrinks, so it is made as large as it may become before this matters.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # some systems name a limit that they do not grant, and keep the old one
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(at_most, MOST_CONNECTIONS) + _OWN_FILES
    last = (wanted if granted == resource.RLIM_INFINITY else min(wanted, granted)) - 1
    # without room there are only occasional pauses
    with Path(os.devnull).open("rb") as file, suppress(OSError):
        os.close(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, last))


def free_descriptors() -> int:
    """How many more files this process may open."""
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if granted == resource.RLIM_INFINITY:
        granted = MOST_CONNECTIONS
    return max(0, granted - len(list(Path("/dev/fd").iterdir())))
