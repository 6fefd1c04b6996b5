"""Connections that were refused for lack of room: each is counted, and one per minute is logged."""

import errno
import logging
from collections.abc import Callable
from typing import Final

from pd_proxy.errors import OutOfDescriptorsError
from pd_proxy.sparing import Sparing

logger = logging.getLogger(__name__)

# The system's errors when this process, or this machine, can open no more connections; no engine is the cause.
OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class Shortage:
    """Counts and logs refused connections; everything that opens or accepts connections reports to it."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """`count` counts one connection by its reason."""
        self._count = count
        self._sparing = Sparing()

    def noted(self, reason: str, detail: str) -> None:
        """A connection was refused; `reason` is a metric label."""
        self._count(reason)
        if self._sparing.due(reason):
            logger.error("no room for a connection", extra={"reason": reason, "detail": detail})

    def own_fault(self, error: OSError) -> OutOfDescriptorsError | None:
        """The error for a connection that this system could not open; None if the other side is the cause."""
        if error.errno not in OWN_FAULTS:
            return None
        self.noted(
            "engine", f"{error.strerror}: raise the limit of open files (ulimit -n) or send fewer requests at once"
        )
        return OutOfDescriptorsError(f"the proxy can open no more connections ({error.strerror})")
