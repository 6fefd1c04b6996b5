"""A connection that Hypercorn serves, without a socket."""

import asyncio

import pytest

from pd_proxy.api.handed_over import HandedOver, Writer


class Transport(asyncio.Transport):
    """One that stays open until it is closed."""

    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_only_its_own_writer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since Python 3.13 a writer that asyncio makes is kept by nobody, and closes the connection when it is collected."""

    class Forgotten(asyncio.StreamWriter):
        def __init__(self, transport: asyncio.Transport, *_: object) -> None:
            transport.close()

        def __del__(self, *_: object) -> None: ...

    monkeypatch.setattr(asyncio.streams, "StreamWriter", Forgotten)
    served = asyncio.Event()

    async def serve(protocol: HandedOver, reader: asyncio.StreamReader, writer: Writer) -> None:
        assert (await reader.readline(), writer.transport) == (b"hello\n", protocol.transport)
        served.set()

    transport = Transport()
    protocol = HandedOver(transport, serve, lambda _: None, lambda *_: ([], b""), 1000)
    protocol.connection_made(transport)
    protocol.data_received(b"hello\n")
    await asyncio.wait_for(served.wait(), 5)

    assert not transport.closed
