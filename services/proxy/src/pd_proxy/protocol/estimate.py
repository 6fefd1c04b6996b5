"""Estimates how many prompt tokens a request has, from what the client wrote. Pure."""

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from pd_proxy.protocol.bounds import occurrences
from pd_proxy.protocol.media import media

# Bytes per token, about, for text of any language in UTF-8 with the tokenizers of current models.
BYTES_A_TOKEN: Final = 4
# Fields whose content becomes part of the prompt beside the messages.
BESIDE: Final = frozenset({"tools", "functions", "documents", "system", "instructions"})
# \uXXXX is a character of up to three bytes in UTF-8; an emoji is written as two of them and takes four.
_ESCAPE_EXCESS: Final = 3


def text_tokens(text: bytes) -> int:
    """Tokens of JSON text; a character counts the same whether it is escaped or not."""
    return _tokens(len(text), text)


def prompt_tokens(prompt: bytes) -> int:
    """Tokens of a completion's prompts; exact if they are token ids."""
    if prompt.find(b'"') >= 0:  # `in` would take four times as long for a single byte
        return text_tokens(prompt)
    return occurrences(prompt, b",") + 1


def messages_tokens(messages: bytes, image_max_tokens: int) -> int:
    """Tokens of messages or of a response's input: from their text, and for images, audio and video from their size."""
    found = media(messages, image_max_tokens)
    return _tokens(len(messages) - found.size, messages) + found.tokens


def beside_tokens(fields: Mapping[str, Raw]) -> int:
    """Tokens of input outside the messages: descriptions of tools, instructions, documents."""
    if BESIDE.isdisjoint(fields):
        return 0
    return sum(text_tokens(bytes(fields[name])) for name in BESIDE if name in fields)


def _tokens(size: int, text: bytes) -> int:
    return (size - _ESCAPE_EXCESS * occurrences(text, b"\\u")) // BYTES_A_TOKEN
