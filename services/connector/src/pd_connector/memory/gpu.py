"""Copies of blocks on an NVIDIA GPU: all layers of all blocks in one kernel, in the order of the engine's own stream."""

import threading
from array import array
from collections import defaultdict
from typing import Any, Final

import torch
import triton
import triton.language as tl

from pd_connector.memory.layout import Layout, Run

WORDS_A_PROGRAM: Final = 2048  # of 8 bytes
WARPS: Final = 8
SCRATCH_BYTES: Final = 16 * 1024**2


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _copy(table, plan, words: tl.constexpr, step: tl.constexpr, aligned: tl.constexpr, gather: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0917  a kernel
    """One program instance copies `step` words of one run of one block; `plan` has pairs (block, row address), `table` triples per run."""
    block = tl.load(plan + 2 * tl.program_id(0))
    row = tl.load(plan + 2 * tl.program_id(0) + 1)
    run = table + 3 * tl.program_id(1)
    inside = tl.load(run) + block * tl.load(run + 1)
    outside = row + tl.load(run + 2)
    offsets = tl.program_id(2) * step + tl.arange(0, step)
    cache = inside.to(tl.pointer_type(tl.int64)) + offsets
    travels = outside.to(tl.pointer_type(tl.int64)) + offsets
    if aligned:
        cache = tl.max_contiguous(tl.multiple_of(cache, 16), step)
        travels = tl.max_contiguous(tl.multiple_of(travels, 16), step)
    keep = offsets < words
    if gather:
        tl.store(travels, tl.load(cache, mask=keep), mask=keep)
    else:
        tl.store(cache, tl.load(travels, mask=keep), mask=keep)


class _Kernel:
    """The kernel for runs of one size; a model has one or two sizes."""

    def __init__(self, runs: list[Run], device: torch.device) -> None:
        size = runs[0].size
        self._words = size // 8
        self._aligned = all(
            value % 16 == 0 for run in runs for value in (run.address, run.stride, run.size, run.offset)
        )
        self._table = torch.tensor(
            [[run.address, run.stride, run.offset] for run in runs], dtype=torch.int64, device=device
        )
        self._grid = (len(runs), triton.cdiv(self._words, WORDS_A_PROGRAM))

    def launch(self, plan: torch.Tensor, *, gather: bool) -> None:
        """Copy, in the order of the current stream."""
        _copy[(plan.shape[0], *self._grid)](
            self._table, plan, self._words, WORDS_A_PROGRAM, self._aligned, gather, num_warps=WARPS
        )


class GpuCopier:
    """Copies rows from and to vLLM's tensors; marks are CUDA events."""

    def __init__(self, layout: Layout, device: torch.device, keep: Any) -> None:
        """`keep` holds references to the tensors, so that their memory stays valid.

        Raises:
            ValueError: if the layers are not made of whole words.
        """
        if any(value % 8 for run in layout.runs for value in (run.address, run.stride, run.size, run.offset)):
            msg = "the KV cache's layers are not made of whole words of 8 bytes"
            raise ValueError(msg)
        self._keep = keep
        self._device = device
        by_size: defaultdict[int, list[Run]] = defaultdict(list)
        for run in layout.runs:
            by_size[run.size].append(run)
        rows = max(1, SCRATCH_BYTES // layout.row_bytes)
        self._scratch = torch.empty(rows * layout.row_bytes + 16, dtype=torch.uint8, device=device)
        aligned = -(-self._scratch.data_ptr() // 16) * 16
        self._scratch_rows = [aligned + row * layout.row_bytes for row in range(rows)]
        self._kernels = [_Kernel(runs, device) for runs in by_size.values()]
        # A high priority, so that these copies start before the model's kernels on a busy GPU.
        self._beside = torch.cuda.Stream(device, priority=-1)
        self._early = torch.cuda.Stream(device, priority=-1)

    def warm_up(self, address: int) -> None:
        """Compile the kernels with an unused row of memory, so that no request waits for the compilation."""
        self.gather([0], [address])
        self.scatter([0], [address])
        # Allocating pinned memory is slow, so it is reused; plans take 16 bytes per block.
        pinned = [torch.empty(2**power, dtype=torch.uint8, pin_memory=True) for power in range(9, 18) for _ in range(4)]
        del pinned
        torch.cuda.current_stream(self._device).synchronize()

    def _launch(self, blocks: list[int], addresses: list[int], *, gather: bool) -> torch.cuda.Event:
        pairs = array("q", bytes(16 * len(blocks)))
        pairs[0::2], pairs[1::2] = array("q", blocks), array("q", addresses)
        # Pinned, so that the copy to the GPU is asynchronous.
        plan = torch.empty((len(blocks), 2), dtype=torch.int64, device="cpu", pin_memory=True)
        plan.copy_(torch.frombuffer(pairs, dtype=torch.int64).view(-1, 2))
        on_device = plan.to(self._device, non_blocking=True)
        for kernel in self._kernels:
            kernel.launch(on_device, gather=gather)
        mark = torch.cuda.Event(blocking=True)
        mark.record()
        return mark

    def gather(self, blocks: list[int], addresses: list[int]) -> torch.cuda.Event:
        """Copy blocks to addresses, after the kernels that the engine has launched."""
        return self._launch(blocks, addresses, gather=True)

    def gather_early(self, blocks: list[int], addresses: list[int]) -> torch.cuda.Event:
        """Copy blocks to addresses after the kernels that the engine has launched, beside those that it launches next."""
        self._early.wait_event(self.computed())
        with torch.cuda.stream(self._early):
            return self._launch(blocks, addresses, gather=True)

    def join(self) -> None:
        """Make the engine's next kernels wait for `gather_early`."""
        torch.cuda.current_stream(self._device).wait_stream(self._early)

    def scatter(self, blocks: list[int], addresses: list[int]) -> torch.cuda.Event:
        """Copy from addresses to blocks, before the engine's next kernels."""
        return self._launch(blocks, addresses, gather=False)

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        """Copy blocks to other blocks through scratch memory, before the engine's next kernels."""
        for first in range(0, len(sources), len(self._scratch_rows)):
            part = slice(first, first + len(self._scratch_rows))
            rows = self._scratch_rows[: len(sources[part])]
            self.gather(sources[part], rows)
            self.scatter(targets[part], rows)

    def gather_beside(self, blocks: list[int], addresses: list[int], computed: torch.cuda.Event) -> torch.cuda.Event:
        """Copy blocks to addresses in a separate stream."""
        self._beside.wait_event(computed)
        with torch.cuda.stream(self._beside):
            return self._launch(blocks, addresses, gather=True)

    def computed(self) -> torch.cuda.Event:
        """A mark after everything that the engine has launched."""
        mark = torch.cuda.Event(blocking=True)
        mark.record()
        return mark

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Sleep until a mark has passed."""
        if mark is not None:
            mark.synchronize()

    def is_over(self, mark: torch.cuda.Event | None) -> bool:
        return mark is None or bool(mark.query())

    def fence(self) -> None:
        """Make the engine's next kernels wait for the copies in the separate stream."""
        torch.cuda.current_stream(self._device).wait_stream(self._beside)

    def enter_thread(self) -> None:
        """Make this GPU the current device of the calling thread."""
        torch.cuda.set_device(self._device)


class Streams(threading.local):
    """A stream for each thread that copies to other engines."""

    def __init__(self, device: torch.device) -> None:
        """Called in each thread on its first access."""
        self.stream = torch.cuda.Stream(device, priority=-1)
