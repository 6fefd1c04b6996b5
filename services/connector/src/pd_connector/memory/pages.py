"""Pages of memory, in the host's and behind one interface with the GPU's."""

import ctypes
import mmap
from typing import Any, Final, Protocol

HOST: Final = "host"
DEVICE: Final = "device"


class Memory(Protocol):
    """So many pages, each at an address that whoever copies blocks can use.

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
        """Reserve it; the operating system gives pages when they are used first."""
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
    """Copies blocks of the KV cache to and from addresses. A mark is when a copy is over: None is at once."""

    def gather(self, blocks: list[int], addresses: list[int]) -> Any:
        """Copy blocks to addresses, after what the engine computes until now; returns the mark."""
        ...

    def scatter(self, blocks: list[int], addresses: list[int]) -> Any:
        """Copy from addresses to blocks, before what the engine computes from now on; returns the mark."""
        ...

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        """Copy blocks to other blocks, before what the engine computes from now on."""
        ...

    def gather_beside(self, blocks: list[int], addresses: list[int], computed: Any) -> Any:
        """Copy blocks to addresses once `computed` has passed, without regard to what the engine computes now; returns the mark."""
        ...

    def computed(self) -> Any:
        """When all is over that the engine computes until now."""
        ...

    def wait(self, mark: Any) -> None: ...

    def is_over(self, mark: Any) -> bool: ...

    def fence(self) -> None:
        """What the engine computes from now on waits for copies beside it."""
        ...

    def enter_thread(self) -> None:
        """Called first in every thread that copies."""
        ...
