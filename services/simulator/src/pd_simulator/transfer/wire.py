"""KV over TCP: frames of a length, a msgpack header and the bytes; one question, one answer, connections kept open."""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

_LENGTH = struct.Struct(">I")
_MAX_HEADER_BYTES = 1 << 16
_MAX_PAYLOAD_BYTES = 1 << 28

Address = tuple[str, int]


class WireError(ConnectionError):
    """The peer speaks another protocol."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What precedes the bytes: what is wanted (or `ok`, `missing`), for which request, and how many bytes follow."""

    command: Literal["put", "pull", "free", "ok", "missing"]
    request_id: str = ""
    size: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)

Answer = Callable[[Frame, bytes], Awaitable[tuple[Frame, bytes]]]


def encode(frame: Frame, payload: bytes = b"") -> bytes:
    """Write a frame and its bytes."""
    header = _encoder.encode(msgspec.structs.replace(frame, size=len(payload)))
    return _LENGTH.pack(len(header)) + header + payload


async def read(reader: asyncio.StreamReader) -> tuple[Frame, bytes]:
    """Read a frame and its bytes.

    Raises:
        WireError: for anything else than a frame.
        asyncio.IncompleteReadError: if the connection ends.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > _MAX_HEADER_BYTES:
        msg = f"a header of {length} bytes"
        raise WireError(msg)
    try:
        frame = _decoder.decode(await reader.readexactly(length))
    except msgspec.MsgspecError as error:
        raise WireError(str(error)) from error
    if not 0 <= frame.size <= _MAX_PAYLOAD_BYTES:
        msg = f"a payload of {frame.size} bytes"
        raise WireError(msg)
    return frame, await reader.readexactly(frame.size)


class KvServer:
    """Listens on the KV port and answers peers."""

    def __init__(self, answer: Answer) -> None:
        """`answer` makes the reply to a frame."""
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._peers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: if the port is taken.
        """
        self._server = await asyncio.start_server(self._connected, host, port)

    async def close(self) -> None:
        """Stop listening and drop the peers."""
        if self._server is not None:
            self._server.close()
        peers = dict(self._peers)
        for writer in peers.values():
            writer.close()
        await asyncio.gather(*peers, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._peers[task] = writer
        task.add_done_callback(self._peers.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(encode(*await self._answer(*await read(reader))))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the peer left or broke the protocol; it will connect again if it needs anything
        finally:
            writer.close()


class KvLinks:
    """Persistent connections to peers' KV ports, one per peer; questions to one peer go one after the other."""

    def __init__(self) -> None:
        self._links: dict[Address, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._locks: dict[Address, asyncio.Lock] = {}

    async def ask(self, address: Address, frame: Frame, payload: bytes = b"") -> tuple[Frame, bytes]:
        """Send a frame and return the answer.

        Raises:
            OSError, asyncio.IncompleteReadError: if the peer cannot be reached or ends the connection.
        """
        async with self._locks.setdefault(address, asyncio.Lock()):
            link = self._links.pop(address, None) or await asyncio.open_connection(*address)
            reader, writer = link
            with contextlib.ExitStack() as undo:
                undo.callback(writer.close)  # an interrupted exchange leaves an answer on the way: never use it again
                writer.write(encode(frame, payload))
                await writer.drain()
                reply = await read(reader)
                undo.pop_all()
            self._links[address] = link
            return reply

    def close(self) -> None:
        for _, writer in self._links.values():
            writer.close()
        self._links.clear()
