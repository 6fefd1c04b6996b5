# ruff: noqa: E402, INP001, T201 - scripts, not a package; the connector is found by its path
"""KV from one process to another over each transport of this machine, in one run: without vLLM, but with the whole connector.

A prefill and a decode station have a KV cache each, in the GPU's memory or the host's. For each transport and size, keys go across one after the other;
measured is from the launch of the gather to the end of the scatter, and the copy alone. With a GPU, decode multiplies matrices meanwhile, as a
busy engine does, and what the transfers take away from that is measured, too.
"""

import argparse
import ctypes
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "services/connector/src"))

from pd_connector.core.orders import Begin, Computed, Ended, Event, Expect, Failed, Load, Ready
from pd_connector.engine.hardware import Cpu, Gpu
from pd_connector.memory.layout import Layer, layout_of
from pd_connector.net.handshake import Identity
from pd_connector.net.plant import Plant
from pd_connector.net.station import Station
from pd_connector.settings import Settings

MIB = 1024**2
# Llama-3.1-8B: 32 layers, 16 tokens per block, 8 heads of 128, keys and values of 2 bytes.
LAYERS, BLOCK_LAYER_BYTES = 32, 16 * 8 * 128 * 2 * 2


class Cache:
    """A KV cache without a model."""

    def __init__(self, blocks: int, gpu: str | None, settings: Settings) -> None:
        if gpu is None:
            self._memory = (ctypes.c_ubyte * (blocks * LAYERS * BLOCK_LAYER_BYTES))()
            base = ctypes.addressof(self._memory)
        else:
            import torch  # noqa: PLC0415

            size = blocks * LAYERS * BLOCK_LAYER_BYTES
            self._tensor = torch.randint(0, 255, (size,), dtype=torch.uint8, device=f"cuda:{gpu}")
            base = self._tensor.data_ptr()
        layer = blocks * BLOCK_LAYER_BYTES
        layers = [
            Layer(f"{i:02}", base + i * layer, (blocks, BLOCK_LAYER_BYTES), (BLOCK_LAYER_BYTES, 1), 1, "uint8")
            for i in range(LAYERS)
        ]
        self.layout = layout_of(layers, blocks)
        self.hardware: Any = Cpu([], self.layout) if gpu is None else Gpu([self._tensor], self.layout, settings)

    def free_bytes(self) -> int:
        """Free memory of the GPU, if there is one."""
        if not hasattr(self, "_tensor"):
            return 0
        import torch  # noqa: PLC0415

        return int(torch.cuda.mem_get_info(self._tensor.device)[0])

    def mark(self, block: int, value: int) -> None:
        """Write something into a block that can be recognized."""
        run = self.layout.runs[0]
        if hasattr(self, "_tensor"):
            start = run.address - self._tensor.data_ptr() + block * run.stride
            self._tensor[start : start + 8] = value % 256
        else:
            ctypes.memset(run.address + block * run.stride, value % 256, 8)

    def marked(self, block: int) -> int:
        run = self.layout.runs[0]
        if hasattr(self, "_tensor"):
            return int(self._tensor[run.address - self._tensor.data_ptr() + block * run.stride])
        return int(ctypes.c_ubyte.from_address(run.address + block * run.stride).value)


class End:
    """A station and its cache."""

    def __init__(self, transport: str, blocks: int, gpu: str | None, port: int, **extra: Any) -> None:
        settings = Settings(transports=(transport,), landing_bytes=1024 * MIB, staging_bytes=1024 * MIB, **extra)
        self.cache = Cache(blocks, gpu, settings)
        row = self.cache.layout.row_bytes
        page_blocks = max(1, settings.page_bytes // row)
        self.address = f"127.0.0.1:{port}"
        self.events: deque[Event] = deque()
        self.came = threading.Event()
        identity = Identity(uuid.uuid4().hex, self.address, 0, {"layout": self.cache.layout.digest})
        ways = self.cache.hardware.transports(identity)
        if transport not in ways:
            sys.exit(f"{transport} is no way on this machine")
        plant = Plant(
            identity=identity,
            settings=settings,
            block_bytes=row,
            page_blocks=page_blocks,
            copier=self.cache.hardware.copier,
            transports=(ways[transport],),
            memory=lambda kind, _use: self.cache.hardware.memory(
                kind, 1024 * MIB // (row * page_blocks), row * page_blocks
            ),
            report=self._report,
        )
        self.station = Station(plant, sends=True, takes=True)
        self.station.start(port)

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self.came.set()

    def first(self, send: Callable[[], object]) -> dict[str, float]:
        """What the first key costs, which opens the transport: time, and the GPU's memory beside that of the pages."""
        self.station.outgoing.staging.of(self.station.plant.transports[0].kind)
        before, begun = self.cache.free_bytes(), time.monotonic()
        send()
        return {
            "first ms": (time.monotonic() - begun) * 1000,
            "MiB a peer": (before - self.cache.free_bytes()) / MIB,
        }

    def until_ready(self, key: str) -> None:
        while True:
            self.came.wait(30)
            self.came.clear()
            for event in list(self.events):
                if isinstance(event, Failed):
                    sys.exit(f"{event.key}: {event.reason}")
                if isinstance(event, Ready) and event.key == key:
                    self.events.remove(event)
                    return


class Busy:
    """Matrix products, one after the other, as a decode engine that has always something to do; only where there is a GPU."""

    def __init__(self, gpu: str) -> None:
        import torch  # noqa: PLC0415

        self._torch = torch
        self._matrix = torch.randn(4096, 4096, device=f"cuda:{gpu}", dtype=torch.bfloat16)
        self._ends = False
        self.products = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        stream = self._torch.cuda.current_stream(self._matrix.device)
        while not self._ends:
            for _ in range(20):
                self._torch.mm(self._matrix, self._matrix)
            stream.synchronize()
            self.products += 20

    def rate(self, seconds: float) -> float:
        before, began = self.products, time.monotonic()
        time.sleep(seconds)
        return (self.products - before) / (time.monotonic() - began)

    def stop(self) -> None:
        self._ends = True
        self._thread.join()


def decode(options: argparse.Namespace) -> None:
    """The other process: expects what it is told on its input, loads it, and says when it was there."""
    end = End(options.transport, options.blocks, options.decode_gpu, options.port + 1, nccl_blocks=options.nccl_blocks)
    busy: Busy | None = None
    print("up", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "busy":
            busy = Busy(options.decode_gpu)
            time.sleep(0.5)
            print(json.dumps(busy.rate(2)), flush=True)
        elif word == "key":
            key, count, mark = rest[0], int(rest[1]), int(rest[2])
            end.station.do(Expect(key, f"127.0.0.1:{options.port}", follows=False))
            print("expected", flush=True)
            end.until_ready(key)
            ready = time.monotonic()
            end.station.before_step([Load(key, key, tuple(range(count)), 0)])
            end.cache.hardware.copier.wait(end.cache.hardware.copier.computed())
            loaded = time.monotonic()
            if end.cache.marked(count - 1) != mark % 256:
                sys.exit(f"{key} is not what was sent")
            print(json.dumps([ready, loaded, busy.products if busy else 0]), flush=True)
    os._exit(0)


def measure(options: argparse.Namespace, transport: str) -> list[dict[str, Any]]:
    command = [
        *shlex.split(options.decode_prefix),
        sys.executable,
        str(Path(__file__).parent),
        "transports",
        "--decode",
        "--transport",
        transport,
    ]
    command += ["--port", str(options.port), "--blocks", str(options.blocks), "--nccl-blocks", str(options.nccl_blocks)]
    command += ["--decode-gpu", options.decode_gpu] if options.decode_gpu else []
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None  # noqa: S101  asked for
    assert child.stdout is not None  # noqa: S101

    def tell(text: str) -> None:
        print(text, file=child.stdin, flush=True)

    def hear() -> str:
        line = child.stdout.readline() if child.stdout else ""
        if not line:
            sys.exit(f"decode over {transport} ended")
        return line.strip()

    hear()
    end = End(transport, options.blocks, options.prefill_gpu, options.port, nccl_blocks=options.nccl_blocks)
    rows: list[dict[str, Any]] = []
    serial = 0

    def send(count: int) -> tuple[float, float, int]:
        nonlocal serial
        serial += 1
        key = f"k{serial}.x"
        end.cache.mark(count - 1, serial)
        tell(f"key {key} {count} {serial}")
        hear()
        end.station.do(Begin(key, key, f"127.0.0.1:{options.port + 1}", count))
        began = time.monotonic()
        end.station.after_step([Computed(key, 0, tuple(range(count)))])
        end.station.do(Ended(key, key, 1))
        ready, loaded, products = json.loads(hear())
        return ready - began, loaded - began, products

    opened = end.first(lambda: send(1))
    for size in options.sizes:
        count = max(1, size * MIB // end.cache.layout.row_bytes)
        for _ in range(3):
            send(count)
        end.station.plant.stats.take()
        found = [send(count) for _ in range(options.repeats)]
        spans = {label: values for _, label, values in (end.station.plant.stats.take() or {}).get("spans", ())}
        moved = count * end.cache.layout.row_bytes
        copies = spans.get("put", [0.0])
        rows.append(
            {
                "transport": transport,
                **opened,
                "MiB": moved / MIB,
                "ready ms": statistics.median(one[0] for one in found) * 1000,
                "loaded ms": statistics.median(one[1] for one in found) * 1000,
                "copy GB/s": moved * options.repeats / sum(copies) / 1e9,
            }
        )
    if options.decode_gpu is not None:
        tell("busy")
        alone = json.loads(hear())
        first, began = send(count), time.monotonic()
        busy = [send(count) for _ in range(options.busy_repeats)]
        rate = (busy[-1][2] - first[2]) / (time.monotonic() - began)
        rows[-1] |= {"busy ready ms": statistics.median(one[0] for one in busy) * 1000}
        rows[-1] |= {"busy GB/s": moved * options.busy_repeats / (time.monotonic() - began) / 1e9}
        rows[-1] |= {"products/s alone": alone, "with transfers": rate}
    child.stdin.close()
    child.wait(10)
    end.station.stop()
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[2, 64, 256], help="MiB"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--busy-repeats", type=int, default=40)
    parser.add_argument("--prefill-gpu", help="number; left out: the host's memory")
    parser.add_argument("--decode-gpu")
    parser.add_argument("--transport", default="")
    parser.add_argument(
        "--decode-prefix", default="", help="a command that starts decode's process, as `unshare --pid --fork`"
    )
    parser.add_argument(
        "--nccl-blocks", type=int, default=4, help="thread blocks of NCCL, as the setting `nccl_blocks`"
    )
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--port", type=int, default=31310)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)


def every_way(options: argparse.Namespace) -> list[str]:
    """The transports of this machine."""
    if options.prefill_gpu is None:
        return ["tcp"]
    return ["vmm", "tcp"] if options.prefill_gpu == options.decode_gpu else ["vmm", "nccl", "tcp"]


def run(options: argparse.Namespace) -> None:
    if options.decode:
        decode(options)
        return
    ways = [options.transport] if options.transport else every_way(options)
    rows: list[dict[str, Any]] = []
    for way in ways:
        rows += measure(options, way)
        for row in rows[-len(options.sizes) :]:
            print(
                "  ".join(
                    f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.items()
                ),
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
