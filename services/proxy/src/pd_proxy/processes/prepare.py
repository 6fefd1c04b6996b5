"""Settings of the interpreter and the system that every process of the proxy makes before it serves."""

import gc
import logging

from pd_contracts.descriptors import allow_many_connections


def prepare() -> None:
    """Prepare the process for many streams at low cost."""
    _save_time()
    allow_many_connections()  # a stream needs two


def _save_time() -> None:
    """Switch off what costs time for every request and is not used here; docs/proxy-cost.md has the numbers."""
    # Log lines show neither the caller, the process nor the thread, so `logging` need not look them up.
    vars(logging)["_srcfile"] = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Imported objects stay alive, so the garbage collector need not visit them while streams wait.
    gc.freeze()
