"""On one GPU, without vLLM: the kernel that gathers and scatters blocks, memory that processes share, and stations over it.

`pytest -m gpu tests/gpu/test_connector_copies.py` where torch and Triton are; OUT gets nothing.
"""

import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from pd_connector.core.orders import Begin, Computed, Ended, Expect, Load, Ready
from pd_connector.memory.layout import Layer, Layout, layout_of
from pd_connector.net.handshake import Identity
from pd_connector.net.plant import Plant
from pd_connector.net.station import Station
from pd_connector.settings import Settings

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from pd_connector.engine.hardware import Gpu  # noqa: E402  needs a GPU
from pd_connector.memory import gpu as memory_gpu  # noqa: E402
from pd_connector.memory.gpu import GpuCopier  # noqa: E402
from pd_connector.memory.streams import SCRATCH_BYTES  # noqa: E402
from pd_connector.net.nccl import Communicator  # noqa: E402

DEVICE = torch.device("cuda", 0)
# NCCL refuses two ranks on one GPU.
OTHER = torch.device("cuda", torch.cuda.device_count() - 1)
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
BLOCKS = 64


def cache(
    shape: tuple[int, ...], layers: int, order: tuple[int, ...] | None = None, device: Any = DEVICE
) -> tuple[list[Any], Layout]:
    """Random tensors of a KV cache, and where their blocks are."""
    order = order or tuple(range(len(shape)))
    inverse = [order.index(axis) for axis in range(len(shape))]
    tensors = [
        torch.randint(-(2**15), 2**15, [shape[axis] for axis in order], dtype=torch.int16, device=device).permute(
            inverse
        )
        for _ in range(layers)
    ]
    found = [
        Layer(f"{i:03}", one.data_ptr(), tuple(one.shape), tuple(one.stride()), one.element_size(), str(one.dtype))
        for i, one in enumerate(tensors)
    ]
    return tensors, layout_of(found, BLOCKS)


SHAPES = {
    "FlashAttention 0.23": ((BLOCKS, 2, 16, 8, 128), None),
    "heads first": ((BLOCKS, 2, 16, 8, 128), (0, 1, 3, 2, 4)),
    "0.26": ((BLOCKS, 8, 16, 256), None),
    "MLA": ((BLOCKS, 64, 576), None),
    "keys and values apart": ((BLOCKS, 2, 16, 8, 64), (1, 0, 2, 3, 4)),
    "an odd size": ((BLOCKS, 3, 4, 7), None),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_blocks_arrive_in_other_blocks(name: str, count: int) -> None:
    shape, order = SHAPES[name]
    (ours, layout), (theirs, other) = cache(shape, 5, order), cache(shape, 5, order)
    before = [tensor.clone() for tensor in theirs]
    sender, receiver = GpuCopier(layout, DEVICE, ours), GpuCopier(other, DEVICE, theirs)
    rows = torch.empty(count * layout.row_bytes + 16, dtype=torch.uint8, device=DEVICE)
    base = -(-rows.data_ptr() // 16) * 16
    addresses = [base + index * layout.row_bytes for index in range(count)]
    sources, targets = torch.randperm(BLOCKS)[:count].tolist(), torch.randperm(BLOCKS)[:count].tolist()

    sender.wait(sender.gather(sources, addresses))
    receiver.wait(receiver.scatter(targets, addresses))

    for mine, his, was in zip(ours, theirs, before, strict=True):
        assert torch.equal(mine[sources], his[targets])
        untouched = [block for block in range(BLOCKS) if block not in targets]
        assert torch.equal(his[untouched], was[untouched])


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_are_copied_to_other_blocks_of_one_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, order = SHAPES[name]
    tensors, layout = cache(shape, 5, order)
    before = [tensor.clone() for tensor in tensors]
    monkeypatch.setattr(memory_gpu, "SCRATCH_BYTES", 7 * layout.row_bytes)  # so that it takes several rounds
    places = torch.randperm(BLOCKS).tolist()
    sources, targets = places[:30], places[30:60]
    GpuCopier(layout, DEVICE, tensors).duplicate(sources, targets)
    torch.cuda.synchronize()

    for now, was in zip(tensors, before, strict=True):
        assert torch.equal(now[targets], was[sources])
        untouched = [block for block in range(BLOCKS) if block not in targets]
        assert torch.equal(now[untouched], was[untouched])


def test_copies_beside_the_steps_wait_for_what_is_computed() -> None:
    tensors, layout = cache((BLOCKS, 16, 256), 4)
    copier = GpuCopier(layout, DEVICE, tensors)
    rows = torch.zeros(layout.row_bytes + 16, dtype=torch.uint8, device=DEVICE)
    address = -(-rows.data_ptr() // 16) * 16
    copier.warm_up(address)
    torch.cuda._sleep(200_000_000)
    for tensor in tensors:
        tensor[3] = 7
    mark = copier.gather_beside([3], [address], copier.computed())
    copier.fence()
    for tensor in tensors:
        tensor[3] = 9
    copier.wait(mark)
    torch.cuda.synchronize()
    start = address - rows.data_ptr()

    assert bool((rows[start : start + layout.row_bytes].view(torch.int16) == 7).all())


def test_copies_beside_the_rest_of_a_step_have_what_was_there_before() -> None:
    tensors, layout = cache((BLOCKS, 16, 256), 4)
    copier = GpuCopier(layout, DEVICE, tensors)
    rows = torch.zeros(layout.row_bytes + 16, dtype=torch.uint8, device=DEVICE)
    address = -(-rows.data_ptr() // 16) * 16
    copier.warm_up(address)
    torch.cuda._sleep(200_000_000)
    for tensor in tensors:
        tensor[3] = 7
    mark = copier.gather_early([3], [address])
    torch.cuda._sleep(2_000_000_000)  # the rest of the step
    rest = copier.computed()
    copier.wait(mark)
    assert not copier.is_over(rest)
    mark = copier.gather_early([3], [address])
    copier.join()
    for tensor in tensors:
        tensor[3] = 9
    copier.wait(mark)
    torch.cuda.synchronize()
    start = address - rows.data_ptr()

    assert bool((rows[start : start + layout.row_bytes].view(torch.int16) == 7).all())


class Half:
    """A station with a KV cache on the GPU."""

    def __init__(self, port: int, folder: Path, transport: str = "vmm", device: Any = DEVICE) -> None:
        torch.cuda.set_device(device)
        self.device = device
        self.tensors, self.layout = cache((BLOCKS, 2, 16, 8, 64), 6, device=device)
        settings = Settings(
            transports=(transport,), socket_folder=str(folder), ping_s=0.1, dead_after_s=1, load_timeout_s=5
        )
        self.address, self.ready = f"127.0.0.1:{port}", threading.Event()
        identity = Identity(uuid.uuid4().hex, self.address, 0, {"layout": self.layout.digest})
        hardware = Gpu(self.tensors, self.layout, settings)
        row, page_blocks = self.layout.row_bytes, 4
        plant = Plant(
            identity=identity,
            settings=settings,
            block_bytes=row,
            page_blocks=page_blocks,
            copier=hardware.copier,
            transports=(hardware.transports(identity)[transport],),
            memory=lambda kind, _use: hardware.memory(kind, 32, row * page_blocks),
            report=lambda event: self.ready.set() if isinstance(event, Ready) else None,
        )
        self.station = Station(plant, sends=True, takes=True)
        self.station.start(port)

    def prefill(self, key: str, sources: list[int], to: str | None) -> None:
        """A prompt of these blocks."""
        torch.cuda.set_device(self.device)
        self.station.do(Begin(key, key, to, len(sources)))
        self.station.after_step([Computed(key, 0, tuple(sources))])
        self.station.do(Ended(key, key, 1, held=to is None))

    def load(self, key: str, targets: list[int]) -> None:
        torch.cuda.set_device(self.device)
        assert self.station.before_step([Load(key, key, tuple(targets), 0)]) == set()
        torch.cuda.synchronize()

    def holds(self, targets: list[int], other: "Half", sources: list[int]) -> bool:
        """Whether these blocks are equal to the other's."""
        return all(
            torch.equal(mine[targets].cpu(), his[sources].cpu())
            for mine, his in zip(self.tensors, other.tensors, strict=True)
        )


@pytest.mark.parametrize("transport", ["vmm", "tcp", pytest.param("nccl", marks=TWO)])
@pytest.mark.parametrize("to", [True, False], ids=["named", "named late"])
def test_kv_of_one_station_arrives_at_another(tmp_path: Path, transport: str, *, to: bool) -> None:
    base = 21000 + 10 * (os.getpid() % 900) + 2 * to
    p, d = Half(base, tmp_path, transport), Half(base + 1, tmp_path, transport, OTHER)
    for number, count in itertools.product(range(3), (1, 9, 50)):
        key, sources, targets = f"{number}-{count}.x", list(range(count)), list(range(63, 63 - count, -1))
        d.ready.clear()
        d.station.do(Expect(key, p.address, follows=False))
        p.prefill(key, sources, d.address if to else None)
        assert d.ready.wait(20), key
        d.load(key, targets)
        assert d.holds(targets, p, sources)
    d.station.stop()
    p.station.stop()
    assert not list(tmp_path.glob("*.sock"))


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_connector_copies as here
here.half(int(sys.argv[2]), here.Path(sys.argv[3]), sys.argv[4], sys.argv[5])
time.sleep(60)
"""


def half(port: int, folder: Path, to: str, transport: str) -> None:
    """Send half of a key. Over NCCL it is only announced, so that a receive of decode waits on the GPU."""
    p = Half(port, folder, transport)
    real = Communicator.send

    def send(self: Communicator, runs: Any, deadline: float) -> None:
        if runs[0][1] > SCRATCH_BYTES:
            print("half", flush=True)  # noqa: T201  to whoever started it
            time.sleep(60)
        real(self, runs, deadline)

    Communicator.send = send  # type: ignore[method-assign]
    p.station.do(Begin("k.x", "k.x", to, 60))
    p.station.after_step([Computed("k.x", 0, tuple(range(30)))])
    if transport != "nccl":
        print("half", flush=True)  # noqa: T201


@pytest.mark.parametrize("transport", ["vmm", pytest.param("nccl", marks=TWO)])
def test_memory_of_a_killed_prefill_is_free_again(tmp_path: Path, transport: str) -> None:
    base = 21000 + 10 * (os.getpid() % 900) + 6
    d = Half(base + 1, tmp_path, transport, OTHER)
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(base), str(tmp_path), d.address, transport]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    deadline = time.monotonic() + 20
    while transport == "vmm" and not d.station.incoming.receiver.counts()["landed"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    child.kill()
    child.wait()
    while d.station.incoming.receiver.counts()["free"] < 32:
        assert time.monotonic() < deadline + 10, d.station.incoming.receiver.counts()
        time.sleep(0.01)
    p = Half(base, tmp_path, transport)  # it starts again at the same address
    d.station.do(Expect("again.x", p.address, follows=False))
    d.ready.clear()
    p.prefill("again.x", list(range(20)), d.address)
    assert d.ready.wait(20)
    d.load("again.x", list(range(40, 60)))
    assert d.holds(list(range(40, 60)), p, list(range(20)))
    d.station.stop()
    p.station.stop()
