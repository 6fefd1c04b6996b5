"""Messages on a byte stream: four bytes of length, most significant first, then the message."""

import struct
from collections.abc import Iterator
from typing import Final

from pd_connector.wire.messages import MAX_MESSAGE_BYTES, Message, ProtocolError, decode, encode

LENGTH: Final = struct.Struct(">I")


def frame(message: Message) -> bytes:
    """Write a message with its length."""
    body = encode(message)
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes | bytearray | memoryview) -> int:
    """Read the length of the message that follows.

    Raises:
        ProtocolError: if the length is larger than that of any message.
    """
    (length,) = LENGTH.unpack_from(head)
    if not 0 < length <= MAX_MESSAGE_BYTES:
        msg = f"a message of {length} bytes"
        raise ProtocolError(msg)
    return int(length)


class Frames:
    """Assembles received bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Yield the messages that are complete now.

        Raises:
            ProtocolError: if the bytes are not messages.
        """
        self._data += data
        while len(self._data) >= LENGTH.size:
            end = LENGTH.size + length_of(self._data)
            if len(self._data) < end:
                return
            message = decode(bytes(self._data[LENGTH.size : end]))
            del self._data[:end]
            yield message

    @property
    def rest(self) -> bytes:
        """Bytes after the last complete message."""
        return bytes(self._data)
