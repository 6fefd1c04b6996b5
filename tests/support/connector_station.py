"""An engine's KV blocks without an engine, for tests of the stations of `pd_connector.net` without vLLM and torch.

As a program: `python -m support.connector_station PORT SETTINGS [LIBRARY]` prefills for others until it is killed; it writes its port, then obeys lines of JSON.
"""

import ctypes
import json
import sys
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from support.connector_nccl import FakeNccl, enter_thread

from pd_connector.core.orders import Begin, Computed, Drain, Drop, Ended, Event, Expect, Failed, Load, Near, Ready
from pd_connector.memory.pages import HostMemory
from pd_connector.net.handshake import Identity
from pd_connector.net.plant import Plant
from pd_connector.net.station import Station
from pd_connector.net.tcp import TcpTransport
from pd_connector.net.transport import Transport
from pd_connector.settings import Settings
from pd_contracts.free_ports import free_ports

BLOCK_BYTES = 4096
PAGE_BLOCKS = 4


class ToyCopier:
    """Blocks in one buffer; copies are over when they return."""

    def __init__(self, blocks: int) -> None:
        self.cache = bytearray(blocks * BLOCK_BYTES)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self.cache))
        self.gathered, self.joined = 0, 0  # calls

    def gather(self, blocks: list[int], addresses: list[int]) -> None:
        self.gathered += 1
        for block, address in zip(blocks, addresses, strict=True):
            ctypes.memmove(address, self._base + block * BLOCK_BYTES, BLOCK_BYTES)

    def scatter(self, blocks: list[int], addresses: list[int]) -> None:
        for block, address in zip(blocks, addresses, strict=True):
            ctypes.memmove(self._base + block * BLOCK_BYTES, address, BLOCK_BYTES)

    def duplicate(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            ctypes.memmove(self._base + target * BLOCK_BYTES, self._base + source * BLOCK_BYTES, BLOCK_BYTES)

    def gather_beside(self, blocks: list[int], addresses: list[int], computed: Any) -> None:  # noqa: ARG002  the interface
        self.gather(blocks, addresses)

    def gather_early(self, blocks: list[int], addresses: list[int]) -> None:
        self.gather(blocks, addresses)

    def join(self) -> None:
        self.joined += 1

    def computed(self) -> None: ...

    def wait(self, mark: Any) -> None: ...

    def is_over(self, mark: Any) -> bool:  # noqa: ARG002  the interface
        return True

    def fence(self) -> None: ...

    def enter_thread(self) -> None:
        enter_thread()


@dataclass
class ToyEngine:
    """A station with its own blocks. `landing` and `staging` count pages; `better` are transports that it prefers to TCP, `nccl` is one more."""

    settings: Settings = field(default_factory=Settings)
    port: int = 0
    blocks: int = 256
    landing: int = 32
    staging: int = 16
    sends: bool = True
    takes: bool = True
    schema: dict[str, str] = field(default_factory=lambda: {"model": "toy"})
    better: tuple[Transport, ...] = ()
    nccl: FakeNccl | None = None
    gpu: str = ""

    def __post_init__(self) -> None:
        self.copier = ToyCopier(self.blocks)
        self.events: deque[Event] = deque()
        self.done: set[str] = set()
        self.empty: set[int] = set()
        boot, sizes = uuid.uuid4().hex, {"landing": self.landing, "staging": self.staging}
        port = self.port or free_ports(1)[0]
        self.address = f"127.0.0.1:{port}"
        better = self.better
        if self.nccl is not None:
            better = (*better, self.nccl.transport(boot, self.address, self.settings, self.gpu))
        self.station = Station(
            Plant(
                identity=Identity(boot, self.address, 0, self.schema),
                settings=self.settings,
                block_bytes=BLOCK_BYTES,
                page_blocks=PAGE_BLOCKS,
                copier=self.copier,
                transports=(*better, TcpTransport(boot, self.address)),
                memory=lambda _kind, use: HostMemory(sizes[use], PAGE_BLOCKS * BLOCK_BYTES),
                report=self.events.append,
            ),
            sends=self.sends,
            takes=self.takes,
        )
        self.station.start(port)

    def stop(self) -> None:
        self.station.stop()

    def begin(self, key: str, count: int, to: str | None) -> None:
        self.station.do(Begin(key, key, to, count))

    def compute(self, key: str, first: int, blocks: list[int]) -> None:
        """Fill blocks, and let them go out."""
        self.fill(key, first, blocks)
        self.station.after_step([Computed(key, first, tuple(blocks))])

    def fill(self, key: str, first: int, blocks: list[int]) -> None:
        """Write to blocks what only this key has there."""
        for index, block in enumerate(blocks, first):
            self.copier.cache[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = content(key, index)

    def end(self, key: str, *, token: int | None = 7, held: bool = False) -> None:
        self.station.do(Ended(key, key, token, held=held))

    def prefill(self, key: str, blocks: list[int], to: str | None, *, held: bool = False) -> None:
        self.begin(key, len(blocks), to)
        self.compute(key, 0, blocks)
        self.end(key, held=held)

    def expect(self, key: str, source: str, *, follows: bool = False) -> None:
        self.station.do(Expect(key, source, follows))

    def drop(self, key: str) -> None:
        self.station.do(Drop(key, "aborted"))

    def until(self, key: str, kind: type[Ready] | type[Failed] | type[Near], seconds: float = 30) -> Any:
        """The event of this kind for a key, once it is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in list(self.events):
                if isinstance(event, kind) and event.key == key:
                    self.events.remove(event)
                    return event
            time.sleep(0.002)
        msg = f"no {kind.__name__} of {key}: {list(self.events)}"
        raise AssertionError(msg)

    def load(self, key: str, blocks: list[int]) -> bool:
        return not self.station.before_step([Load(key, key, tuple(blocks), 0)])

    def drain(self, key: str, blocks: list[int], seconds: float = 30) -> set[int]:
        """Put a key into blocks as it comes; returns those that stayed empty."""
        self.station.before_step([Drain(key, key, tuple(blocks), 0)])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, empty = self.station.incoming.drained(())
            self.done |= done  # several threads may drain: each finds the others' keys, too
            self.empty |= empty
            if key in self.done:
                return self.empty & set(blocks)
            time.sleep(0.002)
        msg = f"{key} does not come"
        raise AssertionError(msg)

    def holds(self, key: str, blocks: list[int]) -> bool:
        """Whether these blocks have the KV of this key."""
        return all(
            self.copier.cache[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] == content(key, index)
            for index, block in enumerate(blocks)
        )

    def at_rest(self) -> bool:
        """Whether no key, and no page but granted ones, is left."""
        sender, receiver = self.station.outgoing.sender, self.station.incoming.receiver
        with self.station.plant.lock:
            staging, landing = sender.counts(), receiver.counts()
            pages = [staging[state] for state in staging if state != "free"]
            pages += [landing[state] for state in ("landed", "loading", "limbo")]
            return len(sender) == len(receiver) == sum(pages) == 0


def content(key: str, index: int) -> bytes:
    """What a block of a key holds."""
    return (f"{key}/{index}/".encode() * BLOCK_BYTES)[:BLOCK_BYTES]


def _serve(port: int, settings: dict[str, Any], library: list[str]) -> None:
    """Obey lines: {"do": name of a method, "with": its arguments}."""
    nccl = FakeNccl(Path(library[0])) if library else None
    engine = ToyEngine(settings=msgspec.convert(settings, Settings), port=port, nccl=nccl)
    print(engine.address, flush=True)  # noqa: T201  to whoever started it
    for line in sys.stdin:
        order = json.loads(line)
        getattr(engine, order["do"])(**order["with"])


if __name__ == "__main__":
    _serve(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
