"""Keeps the log short where clients or engines decide how often something happens."""

from collections.abc import Hashable
from time import monotonic
from typing import Final

QUIET_S: Final = 60.0


class Sparing:
    """Lets one event of each kind per QUIET_S be logged."""

    def __init__(self) -> None:
        self._said: dict[Hashable, float] = {}

    def due(self, kind: Hashable) -> bool:
        """Whether an event that happens now is to be logged."""
        now = monotonic()
        if now - self._said.get(kind, -QUIET_S) < QUIET_S:
            return False
        self._said[kind] = now
        return True
