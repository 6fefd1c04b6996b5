"""As much of protocol buffers as the kubelet's list of pods needs: strings and messages in messages."""

from collections.abc import Iterator

_LENGTH_PREFIXED = 2
# Wire type to the bytes it takes; None is a varint.
_SKIPPED: dict[int, int | None] = {0: None, 1: 8, 5: 4}


class ProtobufError(ValueError):
    """The bytes are not a message."""


def parts(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-prefixed fields of a message, in order: (number, bytes). Numbers of other kinds are passed over.

    Raises:
        ProtobufError: if the bytes are not a message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _LENGTH_PREFIXED:
            length, at = _varint(message, at)
            if at + length > len(message):
                msg = f"field {number} ends after the message"
                raise ProtobufError(msg)
            yield number, message[at : at + length]
            at += length
        elif kind in _SKIPPED:
            size = _SKIPPED[kind]
            at = _varint(message, at)[1] if size is None else at + size
        else:
            msg = f"field {number} has wire type {kind}"
            raise ProtobufError(msg)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            msg = "a number ends after the message"
            raise ProtobufError(msg)
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
