"""The context that both halves of a station share."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pd_connector.core.orders import Event
from pd_connector.memory.pages import Copier, Memory
from pd_connector.net.handshake import Identity
from pd_connector.net.stats import Stats
from pd_connector.net.trace import Trace
from pd_connector.net.transport import Transport
from pd_connector.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One rank of an engine, as its connections see it.

    Attributes:
        block_bytes: bytes of one block in all layers.
        page_blocks: blocks per page.
        transports: the transports of this engine, the best first.
        memory: makes `staging` or `landing` memory of a kind.
        report: passes an event to the scheduler's half; any thread may call it.
        lock: must be held to change the sender or the receiver.
    """

    identity: Identity
    settings: Settings
    block_bytes: int
    page_blocks: int
    copier: Copier
    transports: tuple[Transport, ...]
    memory: Callable[[str, str], Memory]
    report: Callable[[Event], None]
    trace: Trace = field(default_factory=lambda: Trace(""))
    stats: Stats = field(default_factory=Stats)
    lock: threading.RLock = field(default_factory=threading.RLock)


class Store:
    """Memory for one purpose, by kind, made on first use."""

    def __init__(self, plant: Plant, use: str, made: Callable[[str, int], None]) -> None:
        """`made` is called for new memory with its kind and its number of pages."""
        self._plant = plant
        self._use = use
        self._made = made
        self._kinds: dict[str, Memory] = {}

    def of(self, kind: str) -> Memory:
        with self._plant.lock:
            found = self._kinds.get(kind)
            if found is None:
                found = self._kinds[kind] = self._plant.memory(kind, self._use)
                self._made(kind, found.pages)
            return found

    def rows(self, kind: str, pages: list[int], count: int) -> list[int]:
        """The addresses of `count` blocks in these pages."""
        memory, size = self.of(kind), self._plant.block_bytes
        found: list[int] = []
        for page in pages:
            first = memory.address(page)
            found += range(first, first + size * min(self._plant.page_blocks, count - len(found)), size)
        return found
