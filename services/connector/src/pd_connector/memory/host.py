"""Copies of blocks in the host's memory, for vLLM on the CPU. They are synchronous."""

import ctypes
from typing import Any

from pd_connector.memory.layout import Layout


class BlockingCopier:
    """A `Copier` without streams: every copy is synchronous, so there is nothing to wait for."""

    def gather(self, blocks: list[int], addresses: list[int]) -> None:
        """Copy blocks to addresses."""
        raise NotImplementedError

    def gather_early(self, blocks: list[int], addresses: list[int]) -> None:
        """Copy blocks to addresses."""
        self.gather(blocks, addresses)

    def join(self) -> None: ...

    def scatter(self, blocks: list[int], addresses: list[int]) -> None:
        """Copy from addresses to blocks."""
        raise NotImplementedError

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        """Copy blocks to other blocks."""
        raise NotImplementedError

    def gather_beside(self, blocks: list[int], addresses: list[int], computed: Any) -> None:  # noqa: ARG002  the interface
        """Copy blocks to addresses; a step's results are there when the step ends."""
        self.gather(blocks, addresses)

    def computed(self) -> None:
        """None: a step has ended when the next one begins."""

    def wait(self, mark: Any) -> None: ...

    def is_over(self, mark: Any) -> bool:  # noqa: ARG002  the interface
        return True

    def fence(self) -> None: ...

    def enter_thread(self) -> None: ...


class HostCopier(BlockingCopier):
    """Copies rows from and to vLLM's tensors."""

    def __init__(self, layout: Layout, keep: Any) -> None:
        """`keep` holds references to the tensors, so that their memory stays valid."""
        self._runs = layout.runs
        self._keep = keep

    def gather(self, blocks: list[int], addresses: list[int]) -> None:
        for block, address in zip(blocks, addresses, strict=True):
            for run in self._runs:
                ctypes.memmove(address + run.offset, run.address + block * run.stride, run.size)

    def scatter(self, blocks: list[int], addresses: list[int]) -> None:
        for block, address in zip(blocks, addresses, strict=True):
            for run in self._runs:
                ctypes.memmove(run.address + block * run.stride, address + run.offset, run.size)

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            for run in self._runs:
                ctypes.memmove(run.address + target * run.stride, run.address + source * run.stride, run.size)
