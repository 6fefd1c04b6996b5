"""How many tokens a model reads of a request, estimated from what the client wrote. Pure."""

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from pd_proxy.protocol.media import media

# Text of any language, in UTF-8, with the tokenizers of current models: a token has about so many bytes.
BYTES_A_TOKEN: Final = 4
# What the chat template writes beside the messages.
BESIDE: Final = ("tools", "functions", "documents", "system", "instructions")
# \uXXXX is a character that takes three bytes in UTF-8; an emoji, twice that, takes four.
_ESCAPE_EXCESS: Final = 3


def text_tokens(text: bytes) -> int:
    """Tokens of JSON text; a character counts as much however it is written."""
    return _tokens(len(text), text)


def prompt_tokens(prompt: bytes) -> int:
    """Tokens of the prompts of a completion: exact if they are token ids."""
    if b'"' in prompt:
        return text_tokens(prompt)
    return prompt.count(b",") + 1


def messages_tokens(messages: bytes, image_max_tokens: int) -> int:
    """Tokens of messages or of a response's input: of their text, and of images, audio and video by their size."""
    found = media(messages, image_max_tokens)
    return _tokens(len(messages) - found.size, messages) + found.tokens


def beside_tokens(fields: Mapping[str, Raw]) -> int:
    """Tokens of what is not among the messages: descriptions of tools, instructions, documents."""
    return sum(text_tokens(bytes(fields[name])) for name in BESIDE if name in fields)


def _tokens(size: int, text: bytes) -> int:
    return (size - _ESCAPE_EXCESS * text.count(b"\\u")) // BYTES_A_TOKEN
