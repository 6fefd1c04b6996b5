"""A client's request: its JSON body, checked only as far as routing needs; every other byte stays as it came. Pure.

Values are kept as the client wrote them (`msgspec.Raw`), so that what the engine reads is what the client meant: no number
is reformatted and a prompt of 100,000 token ids is not parsed. Engines judge everything else, as plain vLLM does.
"""

from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw, Struct

from pd_proxy.errors import BadRequestError
from pd_proxy.protocol.body import Fields, forbid, present, read, value
from pd_proxy.protocol.bounds import check_items, elements
from pd_proxy.protocol.endpoints import PREFACE, PROMPT, Endpoint
from pd_proxy.protocol.estimate import beside_tokens, messages_tokens, prompt_tokens
from pd_proxy.protocol.shareable import READERS, cut_by_limit

# Default limits of a body.
MAX_PROMPTS: Final = 4096
MAX_BODY_ITEMS: Final = 262_144
IMAGE_MAX_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a body, MAX_PROMPTS and MAX_BODY_ITEMS, and the most tokens that the model makes of one image."""

    prompts: int = MAX_PROMPTS
    items: int = MAX_BODY_ITEMS
    image_max_tokens: int = IMAGE_MAX_TOKENS


DEFAULT_LIMITS: Final = Limits()
# The endpoints whose input is text or token ids, not messages.
OF_PROMPTS: Final = frozenset({Endpoint.COMPLETIONS, Endpoint.GENERATE})


class _Message(Struct):
    """An object, whatever is in it: anything else, such as millions of numbers, is refused at the first one."""


_conversations: Final = msgspec.json.Decoder(list[list[_Message]])


class Generation(Struct, frozen=True):
    """One request for tokens.

    Attributes:
        fields: the body, without fields that a client must not set.
        model: the model's name; None if the client leaves it to the engine.
        stream: whether the answer is a stream of events.
        sequences: the number of sequences: prompts times copies.
        copies: `n`, the number of sequences per prompt.
        tokens: prompt tokens of all prompts: exact for token ids, else estimated from text, tools and media.
        combined_only: the reason as a sentence, if prefill and decode cannot share this request.
    """

    endpoint: Endpoint
    fields: Fields
    model: str | None = None
    stream: bool = False
    sequences: int = 1
    copies: int = 1
    tokens: int = 1
    combined_only: str | None = None


def parse(endpoint: Endpoint, body: bytes, limits: Limits = DEFAULT_LIMITS) -> Generation:
    """Read a client's body.

    Raises:
        BadRequestError: if it is not a JSON object, has no input for the model or more than the limits allow, or a field has a type
            that engines refuse.
        NotStoredError: if it needs a stored response.
    """
    check_items(body, limits.items)
    fields = read(body)
    forbid(fields)
    prompts = _prompts(endpoint, fields)
    if prompts > limits.prompts:
        name = PROMPT[endpoint]
        raise BadRequestError(f"`{name}` holds more than {limits.prompts} prompts (MAX_PROMPTS)", param=name)
    stream = value(fields, "stream", bool) or False
    fields["stream"] = Raw(b"true" if stream else b"false")
    copies, not_shared = READERS[endpoint](fields)
    return Generation(
        endpoint=endpoint,
        fields=fields,
        model=value(fields, "model", str) or None,
        stream=stream,
        sequences=prompts * copies,
        copies=copies,
        tokens=_tokens(endpoint, fields, limits),
        combined_only=not_shared or cut_by_limit(fields),
    )


def prefix(generation: Generation, size: int) -> bytes:
    """The first `size` bytes of the model's input as the client wrote it, instructions first; empty for embeddings."""
    found = memoryview(generation.fields.get(PROMPT[generation.endpoint], b""))
    preface = bytes(generation.fields.get(PREFACE.get(generation.endpoint, ""), b""))
    return (preface[:size] + bytes(found[:size]))[:size]


def _prompts(endpoint: Endpoint, fields: Fields) -> int:
    if endpoint is not Endpoint.COMPLETIONS:
        name = PROMPT[endpoint]
        if not present(fields, name):
            raise BadRequestError(f"you must provide `{name}`", param=name)
        return conversations(fields) if endpoint is Endpoint.BATCH else 1
    if present(fields, "prompt_embeds"):
        return 1
    if not present(fields, "prompt"):
        raise BadRequestError("you must provide a `prompt`", param="prompt")
    return count(fields["prompt"])


def count(prompt: Raw) -> int:
    """The number of prompts in a string, a list of strings, a list of token ids, or a list of such lists."""
    text = bytes(prompt)
    if not text.startswith(b"[") or text[1:64].lstrip()[:1] not in (b'"', b"["):
        return 1
    return elements(text)


def _tokens(endpoint: Endpoint, fields: Fields, limits: Limits) -> int:
    text = bytes(fields.get(PROMPT[endpoint], b""))
    found = prompt_tokens(text) if endpoint in OF_PROMPTS else messages_tokens(text, limits.image_max_tokens)
    return found + beside_tokens(fields) or 1


def conversations(fields: Fields) -> int:
    """The number of conversations in a batch.

    Raises:
        BadRequestError: if it is not a list of lists of messages.
    """
    try:
        return max(1, len(_conversations.decode(fields["messages"])))
    except (msgspec.MsgspecError, RecursionError):
        raise BadRequestError("`messages` must be a list of conversations", param="messages") from None
