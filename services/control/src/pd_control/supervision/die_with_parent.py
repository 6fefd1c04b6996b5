"""Run a command that dies with its parent: `python die_with_parent.py PARENT_PID COMMAND…`.

The kernel sends SIGTERM to this process, and so to what it becomes by exec, when the parent dies, however it dies. A file of
its own with the standard library only, because it starts before every process of a demonstration and must cost nothing.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent = int(sys.argv[1])
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew of the tie
        sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 a list of arguments, never a shell


if __name__ == "__main__":
    main()
