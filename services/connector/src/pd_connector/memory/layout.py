"""Where the bytes of a block are in all layers, from the shapes and strides of vLLM's tensors, without knowledge of attention back ends.

Dimension 0 of every tensor is the block, in every version. A block's bytes in one layer are one run, or a few if the tensor lies in memory in another order.
All runs of all layers, in a fixed order, are the block's *row*: that is what travels.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# With more runs per layer than this, copying them would be slower than computing the KV.
MAX_RUNS: Final = 256


class LayoutError(ValueError):
    """KV in these tensors cannot be copied; the message says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One tensor of the KV cache: where it begins, and its shape and strides in elements."""

    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Run:
    """Contiguous bytes of each block: those of block `b` are the `size` bytes at `address + b * stride`, and lie at `offset` in its row."""

    address: int
    stride: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The runs of a block, the bytes of its row, and what must be equal on both ends, as a digest."""

    runs: tuple[Run, ...]
    row_bytes: int
    digest: str


def layout_of(layers: Sequence[Layer], blocks: int) -> Layout:
    """The layout of a KV cache with this number of blocks.

    Raises:
        LayoutError: if a tensor has no whole number of rows per block, or too many runs.
    """
    runs: list[Run] = []
    digest = hashlib.blake2b(digest_size=8)
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    offset = 0
    for layer in sorted(layers, key=lambda layer: layer.name):
        if (layer.address, layer.shape, layer.strides) in seen:
            continue  # layers that share their KV
        seen.add((layer.address, layer.shape, layer.strides))
        found = _runs(layer, blocks, offset)
        offset += sum(run.size for run in found)
        digest.update(_inner(layer, blocks).encode())
        runs += found
    if not runs:
        msg = "the model has no KV cache"
        raise LayoutError(msg)
    return Layout(tuple(runs), offset, digest.hexdigest())


def _dimensions(layer: Layer, blocks: int) -> list[tuple[int, int]]:
    """Sizes and strides in bytes within a block; a kernel may divide a block into smaller ones."""
    rows, rest = divmod(layer.shape[0], blocks)
    if rest or not rows:
        msg = f"{layer.name} has {layer.shape[0]} rows for {blocks} blocks"
        raise LayoutError(msg)
    sizes = [rows, *layer.shape[1:]]
    return [(size, stride * layer.item_bytes) for size, stride in zip(sizes, layer.strides, strict=True)]


def _runs(layer: Layer, blocks: int, offset: int) -> list[Run]:
    dimensions = _dimensions(layer, blocks)
    stride = dimensions[0][0] * dimensions[0][1]
    size, outer = layer.item_bytes, list[tuple[int, int]]()
    for count, step in sorted((item for item in dimensions if item[0] > 1), key=lambda item: item[1]):
        if step == size and not outer:
            size *= count
        else:
            outer.append((count, step))
    starts = [
        sum(at) for at in itertools.product(*([index * step for index in range(count)] for count, step in outer[::-1]))
    ]
    if len(starts) > MAX_RUNS:
        msg = f"a block of {layer.name} lies in {len(starts)} pieces"
        raise LayoutError(msg)
    return [Run(layer.address + start, stride, size, offset + index * size) for index, start in enumerate(starts)]


def _inner(layer: Layer, blocks: int) -> str:
    """The shape of a block of a layer, independent of the number of blocks."""
    dimensions = _dimensions(layer, blocks)
    block = dimensions[0][0] * dimensions[0][1]
    inner = [(count, step if step < block else "outside") for count, step in dimensions]
    return f"{layer.name} {layer.dtype} {inner}\n"
