"""What every process of the proxy sets for itself before it serves."""

import contextlib
import gc
import logging
import resource
from typing import Final

DESCRIPTORS: Final = 1 << 20


def prepare() -> None:
    """For many streams at little cost."""
    _save_time()
    _allow_many_streams()


def _save_time() -> None:
    """Leave out what costs time at every request and is of no use here; docs/proxy-cost.md says how much."""
    # What no line of the log shows: a look at the stack, the process and the thread (`logging`, Optimization).
    vars(logging)["_srcfile"] = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # What was imported stays, so no search for garbage needs to walk over it while streams wait.
    gc.freeze()


def _allow_many_streams() -> None:
    """A stream needs two descriptors, and the usual limit of 1024 would refuse the 500th."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say; then the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
