"""An engine that does nothing but hand over KV as P2pConnector's `vmm` does, for a container without torch: `pd_engine.py` in its image.

The connector's own code does it, on a libcuda that keeps a GPU's memory in memory files (fake_cuda.c). Prefill writes a page of decode's.
"""

import ctypes
import os
import sys
import time
import types
from typing import Any

SESSION = "prefill-0"
SAID = b"keys and values"
PAGES, PAGE_BYTES = 2, 4096


class Event:
    """A mark in a stream, where every copy is over at once."""

    def __init__(self, **_: bool) -> None:
        pass

    def record(self, _: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, _: "Event") -> float:
        return 0.0


class Streams:
    """What pd_connector.memory.gpu has, without its kernels."""

    def __init__(self, _: Any) -> None:
        self.stream = types.SimpleNamespace(cuda_stream=0, wait_event=lambda _: None)


def module(name: str, **content: Any) -> None:
    """Have `import name` find this."""
    made = types.ModuleType(name)
    vars(made).update(content)
    sys.modules[name] = made


def without_torch() -> None:
    """Its part in all this is to say which GPU a thread uses, and when a copy is over."""
    module("torch", cuda=types.SimpleNamespace(set_device=lambda _: None, Event=Event), device=object)
    module("pd_connector.memory.gpu", Streams=Streams)


def main(role: str, folder: str) -> None:
    without_torch()
    from pd_connector.memory.cumem import DeviceMemory, Driver  # noqa: PLC0415  torch is replaced before
    from pd_connector.net.vmm import VmmTransport  # noqa: PLC0415

    gpu = types.SimpleNamespace(index=0)
    transport: Any = VmmTransport(role, 0, folder, gpu)
    memory = DeviceMemory(Driver(), 0, PAGES, PAGE_BYTES)
    {"prefill": send, "decode": receive}[role](transport, memory, folder)


def send(transport: Any, memory: Any, folder: str) -> None:
    """Map decode's memory, write its second page, and hold the connection."""
    from pd_connector.net.transport import Invitation, Move, TransportError  # noqa: PLC0415

    ctypes.memmove(memory.address(0), SAID, len(SAID))
    details = {"socket": f"{folder}/decode-0.sock", "bytes": str(memory.mapping.size)}
    said = ""
    while True:
        try:
            writer = transport.open(Invitation("", SESSION, details, timeout_s=5, put_timeout_s=5), memory)
            break
        except TransportError as error:
            if str(error) != said:
                said = str(error)
                say(said)
            time.sleep(0.2)
    writer.write([Move(0, 1, PAGE_BYTES)])
    say("sent")
    time.sleep(1e6)


def receive(transport: Any, memory: Any, _: str) -> None:
    """Listen, tell what arrives, and when its sender can write no more."""
    from pd_connector.net.transport import Site  # noqa: PLC0415

    transport.listen(Site(lambda: memory, lambda _session, _pages: True, lambda session: say(f"{session} has let go")))
    while True:
        transport.adopt(SESSION, None)
        found = memory.read(1, len(SAID))
        if found == SAID:
            say(found.decode())
            memory.zero(1)
        time.sleep(0.1)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  a container's log


if __name__ == "__main__" and sys.argv[1:] == ["start"]:  # else a probe, which has nothing to ask
    main(os.environ["PD_ROLE"], os.environ["KV_SOCKET_FOLDER"])
