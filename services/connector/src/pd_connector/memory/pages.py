"""The interface of memory pages and copiers, and its implementation in host memory."""

import ctypes
import mmap
from typing import Any, Final, Protocol

HOST: Final = "host"
DEVICE: Final = "device"


class Memory(Protocol):
    """`count` pages, each at an address that copiers can use.

    Attributes:
        kind: `host` or `device`.
        page_bytes: size of a page.
    """

    kind: str
    pages: int
    page_bytes: int

    def address(self, page: int) -> int: ...

    def zero(self, page: int) -> None:
        """Overwrite a page with zeros (a fault on purpose)."""
        ...

    def read(self, page: int, size: int) -> bytes:
        """The first bytes of a page (for checksums)."""
        ...


class HostMemory:
    """Pages of ordinary memory."""

    kind = HOST

    def __init__(self, pages: int, page_bytes: int) -> None:
        """Reserve the memory; the operating system allocates pages on first use."""
        self.pages = pages
        self.page_bytes = page_bytes
        self.map = mmap.mmap(-1, max(1, pages * page_bytes))
        self.view = memoryview(self.map)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def address(self, page: int) -> int:
        return self._base + page * self.page_bytes

    def page(self, page: int, size: int) -> memoryview:
        """The first bytes of a page, to read or write them."""
        start = page * self.page_bytes
        return self.view[start : start + size]

    def zero(self, page: int) -> None:
        """Overwrite a page with zeros."""
        self.page(page, self.page_bytes)[:] = bytes(self.page_bytes)

    def read(self, page: int, size: int) -> bytes:
        return bytes(self.page(page, size))


class Copier(Protocol):
    """Copies blocks of the KV cache to and from addresses. A mark is an event after which a copy is complete; None means it already is."""

    def gather(self, blocks: list[int], addresses: list[int]) -> Any:
        """Copy blocks to addresses, after the work that the engine has queued; returns the mark."""
        ...

    def gather_early(self, blocks: list[int], addresses: list[int]) -> Any:
        """Copy blocks to addresses after the work that the engine has queued, in parallel to its later work; returns the mark.

        `join` must follow before a step can write to these blocks.
        """
        ...

    def join(self) -> None:
        """Make the engine's later work wait for `gather_early`."""
        ...

    def scatter(self, blocks: list[int], addresses: list[int]) -> Any:
        """Copy from addresses to blocks, before the engine's later work; returns the mark."""
        ...

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        """Copy blocks to other blocks, before the engine's later work."""
        ...

    def gather_beside(self, blocks: list[int], addresses: list[int], computed: Any) -> Any:
        """Copy blocks to addresses once `computed` has passed, in parallel to the engine's work; returns the mark."""
        ...

    def computed(self) -> Any:
        """A mark after the work that the engine has queued."""
        ...

    def wait(self, mark: Any) -> None: ...

    def is_over(self, mark: Any) -> bool: ...

    def fence(self) -> None:
        """Make the engine's later work wait for parallel copies."""
        ...

    def enter_thread(self) -> None:
        """Called first in every thread that copies."""
        ...
