"""What every process of the proxy sets for itself before it serves."""

import gc
import logging

from pd_contracts.descriptors import allow_many_connections


def prepare() -> None:
    """For many streams at little cost."""
    _save_time()
    allow_many_connections()  # a stream has two


def _save_time() -> None:
    """Leave out what costs time at every request and is of no use here; docs/proxy-cost.md says how much."""
    # What no line of the log shows: a look at the stack, the process and the thread (`logging`, Optimization).
    vars(logging)["_srcfile"] = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # What was imported stays, so no search for garbage needs to walk over it while streams wait.
    gc.freeze()
