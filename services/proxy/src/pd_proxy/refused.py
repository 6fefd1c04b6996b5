"""Requests that the HTTP layer refuses before it is known what they ask for: each is counted, and one per minute and status is logged."""

import logging
from collections.abc import Callable

from pd_proxy.sparing import Sparing

logger = logging.getLogger(__name__)


class RefusedRequests:
    """Counts and logs them; whatever reads requests reports to it."""

    def __init__(self, count: Callable[[int], None]) -> None:
        """`count` counts one by its status."""
        self._count = count
        self._sparing = Sparing()

    def noted(self, status: int, reason: str) -> None:
        """A request was refused."""
        self._count(status)
        if self._sparing.due(status):
            logger.warning(
                "request refused; others with this status are not logged for a minute",
                extra={"status": status, "reason": reason[:200]},
            )
