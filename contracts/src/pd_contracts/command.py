"""How every command starts and ends: neither Ctrl-C at any moment nor a closed pipe (`| head`) prints a traceback.

Imports take a second, during which Ctrl-C would print a traceback from some other module. So a `__main__` imports only this module.
"""

import os
import select
import signal
import sys
from importlib import import_module
from typing import Final

INTERRUPTED: Final = 128 + signal.SIGINT  # as shells count it


def run(module: str) -> int:
    """Import `module`, call its `main()`, and return the exit status.

    Before and after, Ctrl-C has the system's own effect: the process is gone.
    """
    usual = signal.getsignal(signal.SIGINT)
    plain = (
        signal.SIG_DFL if usual is signal.default_int_handler else usual
    )  # ignored, if whoever started this wants it
    signal.signal(signal.SIGINT, plain)
    main = import_module(module).main
    try:
        signal.signal(signal.SIGINT, usual)
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_left():
            raise
        # Nothing is left to be flushed when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        signal.signal(signal.SIGINT, plain)
    return int(status or 0)


def _reader_left() -> bool:
    """Whether it was stdout that broke, and no connection of the command's own."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))
