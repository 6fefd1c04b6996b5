"""An engine's KV blocks, as P2pConnector's station copies from and to them."""

import ctypes
from collections.abc import Iterable
from typing import Final

from pd_connector.memory.host import BlockingCopier
from pd_simulator.kv_blocks import BLOCK_TOKENS
from pd_simulator.transfer.kv_cache import ENTRY_BYTES

BLOCK_BYTES: Final = BLOCK_TOKENS * ENTRY_BYTES


class Blocks(BlockingCopier):
    """The part of the KV cache that is sent or received: each block's bytes by its number."""

    def __init__(self) -> None:
        self._bytes: dict[int, bytes] = {}
        self._next = 0

    def put(self, entries: bytes) -> tuple[int, ...]:
        """Store a prompt's KV; returns its blocks, the last of which may be filled in part."""
        numbers = self.reserve(-(-len(entries) // BLOCK_BYTES))
        for index, number in enumerate(numbers):
            self._bytes[number] = entries[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
        return numbers

    def reserve(self, count: int) -> tuple[int, ...]:
        """Numbers of `count` empty blocks."""
        first, self._next = self._next, self._next + count
        return tuple(range(first, self._next))

    def take(self, numbers: Iterable[int]) -> bytes:
        """What is in these blocks, which are empty from now on."""
        return b"".join(self._bytes.pop(number, b"") for number in numbers)

    def __len__(self) -> int:
        """Blocks that hold something."""
        return len(self._bytes)

    def read(self, numbers: Iterable[int]) -> bytes:
        """What is in these blocks."""
        return b"".join(self._bytes.get(number, b"") for number in numbers)

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._bytes[target] = self._bytes[source]

    def gather(self, blocks: list[int], addresses: list[int]) -> None:
        for block, address in zip(blocks, addresses, strict=True):
            ctypes.memmove(address, self._bytes[block], BLOCK_BYTES)

    def scatter(self, blocks: list[int], addresses: list[int]) -> None:
        for block, address in zip(blocks, addresses, strict=True):
            self._bytes[block] = ctypes.string_at(address, BLOCK_BYTES)
