"""Generated pictures and sounds, as data URLs. They are noise: no two are alike, and compression or caches do not help.

Bytes come from SHAKE-256 over seed and name: the same on every machine and Python.
"""

import base64
import hashlib
import re
import struct
import zlib
from typing import Any, Final

SOUND_HZ: Final = 16_000
_SIZE: Final = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
MOST_PIXELS: Final = 4096 * 4096


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from `512x384`.

    Raises:
        ValueError: with a sentence.
    """
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) * int(match[2]) > MOST_PIXELS:
        msg = f"image_size {text!r}: expected WIDTHxHEIGHT in pixels, at most 16 million of them"
        raise ValueError(msg)
    return int(match[1]), int(match[2])


def png(name: str, width: int, height: int) -> bytes:
    """A picture of noise, 8 bits each of red, green and blue."""
    noise, row = _noise(name, 3 * width * height), 3 * width
    lines = b"".join(b"\0" + noise[start : start + row] for start in range(0, len(noise), row))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def wav(name: str, seconds: float) -> bytes:
    """A sound of noise: one channel, 16 bits, 16 kHz."""
    noise = _noise(name, 2 * max(1, round(seconds * SOUND_HZ)))
    form = struct.pack("<HHIIHH", 1, 1, SOUND_HZ, 2 * SOUND_HZ, 2, 16)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(noise)) + noise
    return b"RIFF" + struct.pack("<I", len(body)) + body


def parts(
    seed: int, name: str, *, images: int, size: tuple[int, int], audios: int, seconds: float
) -> list[dict[str, Any]]:
    """Parts of a chat message: `image_url` as OpenAI has it, `audio_url` as vLLM does."""
    pictures = [png(f"image:{seed}:{name}:{number}", *size) for number in range(images)]
    sounds = [wav(f"audio:{seed}:{name}:{number}", seconds) for number in range(audios)]
    return [
        *({"type": "image_url", "image_url": {"url": _url("image/png", data)}} for data in pictures),
        *({"type": "audio_url", "audio_url": {"url": _url("audio/wav", data)}} for data in sounds),
    ]


def _noise(name: str, count: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(count)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _url(type_: str, data: bytes) -> str:
    return f"data:{type_};base64,{base64.b64encode(data).decode()}"
