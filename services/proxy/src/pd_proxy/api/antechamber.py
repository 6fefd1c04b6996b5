"""Connections for which there is no room, while it is unknown whether they are probes. Pure.

There are few places, because each takes a descriptor. So in a flood the client with the most of them loses its oldest one: a
connection that says nothing, or that does not read why it was refused, keeps no probe out.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

# How probes begin. They say how the proxy is, above all when it is full: an orchestrator that gets no answer restarts it, with everything it serves.
PROBES: Final = tuple(
    f"{method} {path}{end}".encode()
    for method in ("GET", "HEAD")
    for path in ("/health", "/ping", "/ready", "/metrics")
    for end in (" ", "?")
)


def may_be_probe(head: bytes) -> bool:
    """Whether these bytes begin a probe, or can still do so."""
    return any(head.startswith(probe) or probe.startswith(head) for probe in PROBES)


class Antechamber:
    """At most `places` connections. They are known by any key, such as their transport."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: dict[Hashable, tuple[str, Callable[[], None]]] = {}
        self._served: set[Hashable] = set()

    def enter(self, key: Hashable, client: str, head: bytes, leave: Callable[[], None]) -> bool:
        """Take a place; `head` is what has been read of the connection's request. Returns False if there is no place.

        What may still be a probe gets one that another connection has, unless that is being served; `leave` is called when it has to go.
        """
        if len(self._waiting) + len(self._served) >= self._places:
            if not self._waiting or not may_be_probe(head):
                return False
            most, _ = Counter(owner for owner, _ in self._waiting.values()).most_common(1)[0]
            oldest = next(one for one, (owner, _) in self._waiting.items() if owner == most)
            _, leave_now = self._waiting.pop(oldest)
            leave_now()
        self._waiting[key] = client, leave
        return True

    def serve(self, key: Hashable) -> None:
        """A connection is a probe, which is answered now and keeps its place."""
        if self._waiting.pop(key, None) is not None:
            self._served.add(key)

    def left(self, key: Hashable) -> None:
        """A connection has ended, whether it had a place or not."""
        self._waiting.pop(key, None)
        self._served.discard(key)
