"""Estimates the tokens of images, audio and video in a request from their size, because their base64 is not text. Pure."""

import base64
import binascii
import io
import re
import struct
import wave
from collections.abc import Callable
from typing import Final

import imagesize
import msgspec
from msgspec import Raw

# Qwen-VL makes one token of 28 x 28 pixels, InternVL about the same in tiles of 448 x 448; models with one size for all images make fewer.
PIXELS_A_TOKEN: Final = 28
# The assumed size of an image of which only the address is known: about 1000 x 1000 pixels.
UNSEEN_IMAGE: Final = 1024
# Speech encoders make at most 25 tokens per second (Qwen2-Audio, Qwen2.5-Omni).
AUDIO_TOKENS_A_SECOND: Final = 25
COMPRESSED_AUDIO_BYTES_A_SECOND: Final = 16_000
UNSEEN_AUDIO: Final = 30 * AUDIO_TOKENS_A_SECOND
# vLLM samples 32 frames, which models merge in pairs; 512 tokens per pair.
VIDEO: Final = 16 * 512
UNSEEN_FILE: Final = 1024
# How many bytes of a file are read to find the image's size: cameras put previews before it.
HEADER_BYTES: Final = 192 * 1024

_WRITTEN_OUT: Final = re.compile(rb';base64,|"data"\s*:\s*"(?!data:)')


class Node(msgspec.Struct):
    """A message or a part of its content: the fields that may hold media, by OpenAI's and Anthropic's names."""

    content: Raw = Raw()
    output: Raw = Raw()
    image_url: Raw = Raw()
    image_embeds: Raw = Raw()
    input_audio: Raw = Raw()
    audio_url: Raw = Raw()
    video_url: Raw = Raw()
    source: Raw = Raw()
    file: Raw = Raw()
    file_data: Raw = Raw()


class Media(msgspec.Struct):
    """The media in some messages: their size there in bytes, and their tokens in the model."""

    size: int = 0
    tokens: int = 0


def image(value: bytes, most: int) -> int:
    """Tokens of an image, at most `most`; `value` is JSON that holds its address or its base64."""
    beginning, _ = written_out(value)
    width, height = _pixels(beginning) if beginning else (-1, -1)
    if width <= 0 or height <= 0:
        return min(UNSEEN_IMAGE, most)
    return min(most, -(-width // PIXELS_A_TOKEN) * -(-height // PIXELS_A_TOKEN))


def audio(value: bytes, _most: int) -> int:
    """Tokens of an audio file: by its duration if it is WAV, else estimated from its size."""
    beginning, size = written_out(value)
    if not size:
        return UNSEEN_AUDIO
    try:
        with wave.open(io.BytesIO(beginning)) as sound:
            seconds = sound.getnframes() / max(1, sound.getframerate())
    except (wave.Error, EOFError, struct.error):
        seconds = size / COMPRESSED_AUDIO_BYTES_A_SECOND
    return max(1, int(seconds * AUDIO_TOKENS_A_SECOND))


Estimate = Callable[[bytes, int], int]
KINDS: Final[dict[str, Estimate]] = {
    "image_url": image,
    "source": image,
    "image_embeds": lambda _, most: min(UNSEEN_IMAGE, most),
    "input_audio": audio,
    "audio_url": audio,
    "video_url": lambda _, __: VIDEO,
    "file": lambda _, __: UNSEEN_FILE,
    "file_data": lambda _, __: UNSEEN_FILE,
}
# Messages without any of these words hold only text.
_WORDS: Final = re.compile(f'"(?:{"|".join(KINDS)})"'.encode())
_nodes = msgspec.json.Decoder(list[Node])
# Messages hold parts; among these, tool results hold parts themselves.
_DEPTH: Final = 3


def media(messages: bytes, image_max_tokens: int) -> Media:
    """The media in a list of messages (JSON); anything else counts as text."""
    found = Media()
    if _WORDS.search(messages) is not None:
        _add(found, messages, image_max_tokens, _DEPTH)
    return found


def _add(found: Media, nodes: bytes, most: int, depth: int) -> None:
    try:
        listed = _nodes.decode(nodes)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return  # engines refuse it
    for node in listed:
        for name, estimate in KINDS.items():
            value = bytes(getattr(node, name))
            if value not in (b"", b"null"):
                found.size += len(value)
                found.tokens += estimate(value, most)
        for inner in (bytes(node.content), bytes(node.output)) if depth else ():
            if inner.startswith(b"["):
                _add(found, inner, most, depth - 1)


def written_out(value: bytes) -> tuple[bytes, int]:
    """The first bytes of a JSON value's base64 data, and their total number; nothing if the value holds an address."""
    found = _WRITTEN_OUT.search(value)
    if found is None:
        return b"", 0
    end = value.find(b'"', found.end())
    size = (end if end >= 0 else len(value)) - found.end()
    text = value[found.end() : found.end() + min(size, HEADER_BYTES // 3 * 4)].replace(b"\\/", b"/")
    try:
        beginning = base64.b64decode(text[: len(text) // 4 * 4])
    except binascii.Error:
        beginning = b""
    return beginning, size * 3 // 4


def _pixels(beginning: bytes) -> tuple[int, int]:
    # imagesize also reads SVG, which is text rather than an image.
    if beginning.lstrip()[:1] in (b"<", b""):
        return -1, -1
    try:
        width, height = imagesize.get(io.BytesIO(beginning))
    except (ValueError, OSError, struct.error, IndexError, KeyError, OverflowError):
        return -1, -1  # not an image; the engine refuses it
    return int(width), int(height)
