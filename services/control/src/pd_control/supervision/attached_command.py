"""A command in the foreground that shares the terminal and ends before pdctl does."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from pd_control.supervision import die_with_parent

GRACE_S = 10.0


def run(command: Sequence[str], environment: Mapping[str, str], *, quiet: bool = False) -> int:
    """Run to the end and return the exit status, 128 + n after signal n; `quiet` drops what it writes to stdout.

    On Ctrl-C the terminal has signalled the command too, so it gets time to save its results; on other exceptions it is ended.
    """
    tied = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), *command]
    stdout = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(tied, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout) as process:
        try:
            status = process.wait()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                process.terminate()
            try:
                process.wait(GRACE_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
            raise
    return status if status >= 0 else 128 - status
