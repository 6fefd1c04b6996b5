"""Ends requests that wait too long: for their client, or for an engine that has lost them."""

import asyncio
import logging
from typing import Final

from pd_proxy.context import Context
from pd_proxy.engines.registry import Instance
from pd_proxy.errors import SlowClientError, StalledError

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0


class Deadlines:
    """Enforces CLIENT_STALL_TIMEOUT_S and GIVE_UP_S; `period_s` is the time between two looks at them and at engines that may be stalled."""

    def __init__(self, context: Context) -> None:
        self._context = context
        settings = context.settings
        self.period_s = min(PERIOD_S, settings.decode_stall_timeout_s / 4, settings.client_stall_timeout_s / 4)

    def enforce(self) -> None:
        """End the overdue requests of this process."""
        now = asyncio.get_running_loop().time()
        self._end_unread(now)
        for instance in self._context.registry.view():
            self._end_overdue(instance, now)

    def _end_unread(self, now: float) -> None:
        limit = self._context.settings.client_stall_timeout_s
        error = SlowClientError(f"the client read nothing for {limit:g} s")
        ended = self._context.flights.abort_unread(now - limit, error)
        if ended:
            logger.warning("streams of slow clients ended", extra={"streams": ended})

    def _end_overdue(self, instance: Instance, now: float) -> None:
        """End requests that an engine may have lost although its other requests move; their clients must not wait forever."""
        limit = self._context.settings.give_up_s
        error = StalledError(f"{instance.name} sent nothing of an answer for {limit:g} s")
        ended = self._context.flights.abort_overdue(instance, now - limit, error)
        if ended:
            logger.warning("requests ended because their engine does not answer", extra={"requests": ended})
