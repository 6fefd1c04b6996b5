"""The bytes of a block are found in every order in which vLLM has laid out its KV cache."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_connector.memory.host import HostCopier
from pd_connector.memory.layout import MAX_RUNS, Layer, LayoutError, Run, layout_of

BLOCKS = 6


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def layer(
    shape: tuple[int, ...], strides: tuple[int, ...] | None = None, *, address: int = 4096, name: str = "a"
) -> Layer:
    return Layer(name, address, shape, strides or contiguous(shape), 2, "float16")


@pytest.mark.parametrize(
    "shape",
    [(BLOCKS, 2, 16, 8, 128), (BLOCKS, 8, 16, 256), (BLOCKS, 16, 576), (BLOCKS, 8, 16, 2, 128)],
    ids=["FlashAttention 0.23", "0.26 and the CPU", "MLA", "another"],
)
def test_a_block_that_lies_together_is_one_run(shape: tuple[int, ...]) -> None:
    size = 2
    for extent in shape[1:]:
        size *= extent

    found = layout_of([layer(shape)], BLOCKS)

    assert found.runs == (Run(4096, size, size, 0),)
    assert found.row_bytes == size


def test_heads_before_tokens_in_memory_are_one_run_too() -> None:
    heads_first = layer((BLOCKS, 2, 16, 8, 128), (2 * 8 * 16 * 128, 8 * 16 * 128, 128, 16 * 128, 1))

    assert len(layout_of([heads_first], BLOCKS).runs) == 1
    assert layout_of([heads_first], BLOCKS).digest != layout_of([layer((BLOCKS, 2, 16, 8, 128))], BLOCKS).digest


def test_keys_and_values_apart_are_two_runs() -> None:
    half = BLOCKS * 16 * 8
    apart = layer((BLOCKS, 2, 16, 8), (16 * 8, half, 8, 1))

    assert layout_of([apart], BLOCKS).runs == (Run(4096, 256, 256, 0), Run(4096 + 2 * half, 256, 256, 256))


def test_layers_within_each_block_are_one_run_a_layer() -> None:
    step = 3 * 64
    layers = [layer((BLOCKS, 64), (step, 1), address=4096 + 128 * index, name=str(index)) for index in range(3)]

    assert layout_of(layers, BLOCKS).runs == tuple(Run(4096 + 128 * i, 2 * step, 128, 128 * i) for i in range(3))


def test_a_kernel_may_divide_a_block_into_smaller_ones() -> None:
    assert layout_of([layer((BLOCKS * 4, 8, 2))], BLOCKS).runs == (Run(4096, 4 * 32, 4 * 32, 0),)


def test_layers_that_share_their_kv_travel_once() -> None:
    assert len(layout_of([layer((BLOCKS, 8), name="a"), layer((BLOCKS, 8), name="b")], BLOCKS).runs) == 1


def test_the_order_of_layers_is_that_of_their_names() -> None:
    two = [layer((BLOCKS, 8), address=4096, name="a"), layer((BLOCKS, 8), address=8192, name="b")]

    assert layout_of(two, BLOCKS) == layout_of(two[::-1], BLOCKS)


def test_the_digest_does_not_depend_on_how_many_blocks_there_are() -> None:
    few, many = layer((BLOCKS, 2, 64)), layer((50, 2, 64))
    apart_few, apart_many = layer((BLOCKS, 2, 64), (64, BLOCKS * 64, 1)), layer((50, 2, 64), (64, 50 * 64, 1))

    assert layout_of([few], BLOCKS).digest == layout_of([many], 50).digest
    assert layout_of([apart_few], BLOCKS).digest == layout_of([apart_many], 50).digest


@pytest.mark.parametrize("layers", [[], [layer((7, 8))], [layer((BLOCKS, MAX_RUNS + 1, 2), (4 * MAX_RUNS, 4, 1))]])
def test_what_cannot_be_copied_is_refused(layers: list[Layer]) -> None:
    with pytest.raises(LayoutError):
        layout_of(layers, BLOCKS)


def test_blocks_are_copied_to_other_blocks_of_one_cache() -> None:
    cache = (ctypes.c_ubyte * 60)(*range(60))
    layout = layout_of([Layer("a", ctypes.addressof(cache), (6, 5), (5, 1), 2, "x")], 6)
    HostCopier(layout, cache).duplicate([1, 5], [4, 0])

    assert bytes(cache) == bytes([*range(50, 60), *range(10, 40), *range(10, 20), *range(50, 60)])


@given(data=st.data())
def test_rows_from_one_cache_arrive_in_another(data: st.DataObject) -> None:
    inner = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    order = data.draw(st.permutations(range(len(inner) + 1)))
    shape = (BLOCKS, *inner)
    permuted = contiguous(tuple(shape[axis] for axis in order))
    strides = [0] * len(shape)
    for place, axis in enumerate(order):
        strides[axis] = permuted[place]
    size = 2 * BLOCKS
    for extent in inner:
        size *= extent
    ours, theirs = (ctypes.c_ubyte * size)(*[i % 251 for i in range(size)]), (ctypes.c_ubyte * size)()
    layouts = [
        layout_of([Layer("a", ctypes.addressof(one), shape, tuple(strides), 2, "x")], BLOCKS) for one in (ours, theirs)
    ]
    row = (ctypes.c_ubyte * layouts[0].row_bytes)()
    blocks = data.draw(st.permutations(range(BLOCKS)))
    targets = data.draw(st.permutations(range(BLOCKS)))
    for source, target in zip(blocks, targets, strict=True):
        HostCopier(layouts[0], ours).gather([source], [ctypes.addressof(row)])
        HostCopier(layouts[1], theirs).scatter([target], [ctypes.addressof(row)])

    def block(memory: ctypes.Array[ctypes.c_ubyte], index: int) -> list[int]:
        found = []
        for flat in range(size // BLOCKS // 2):
            at, rest = index * strides[0], flat
            for extent, stride in zip(reversed(inner), reversed(strides[1:]), strict=True):
                at += rest % extent * stride
                rest //= extent
            found += [memory[2 * at], memory[2 * at + 1]]
        return found

    for source, target in zip(blocks, targets, strict=True):
        assert block(theirs, target) == block(ours, source)
