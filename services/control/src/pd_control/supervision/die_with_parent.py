"""Run a command that dies with its parent: `python die_with_parent.py PARENT_PID COMMAND…`.

The kernel sends SIGTERM to this process, which exec turns into COMMAND, whenever the parent dies. This is a separate file
that uses only the standard library, because it runs before every process of a comparison and must start fast.
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
    if os.getppid() != parent:  # the parent died before prctl took effect
        sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 a list of arguments, never a shell


if __name__ == "__main__":
    main()
