"""Whether the page's server is simulated, asked in the background so that pages do not wait for it."""

import time
from collections.abc import Callable
from typing import Final

import gevent

from pd_loadgen.client.access import Access
from pd_loadgen.target import server

LOOK_EVERY_S: Final = 10.0


class SimulationLooks:
    """Asks now and then; `access` gives headers and TLS context for the server."""

    def __init__(self, access: Callable[[], Access]) -> None:
        self._access = access
        self._url, self._simulated, self._looked = "", False, 0.0

    def told(self, url: str) -> bool:
        """What is known of the server at `url`; a first answer comes with a later call."""
        now = time.monotonic()
        if url != self._url:
            self._url, self._simulated, self._looked = url, False, 0.0
        if url and (not self._looked or now - self._looked > LOOK_EVERY_S):
            self._looked = now
            gevent.spawn(self._look, url)
        return self._simulated

    def _look(self, url: str) -> None:
        try:
            found = server.simulated(url, self._access())
        except (OSError, ValueError):
            return  # no server yet, or a form that is not filled in: nothing is known
        if url == self._url:
            self._simulated = found
