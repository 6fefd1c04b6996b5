"""What a client asks for: its JSON body, checked only as far as routing needs, every other byte left as it came. Pure.

Values are kept as the client wrote them (`msgspec.Raw`), so that what the engine reads is what the client meant: no number
is reformatted and a prompt of 100,000 token ids is not parsed. Engines judge everything else, as plain vLLM does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from pd_proxy.errors import BadRequestError

T = TypeVar("T")
Fields = Mapping[str, Raw]

# A client that could set these would choose where KV goes, or an id that breaks the connector's grammar.
FORBIDDEN: Final = ("kv_transfer_params", "request_id")

_decoder = msgspec.json.Decoder(dict[str, Raw])
# English text with the tokenizers of current models; only used where an estimate will do.
CHARACTERS_PER_TOKEN: Final = 4
_NULL: Final = b"null"


class Endpoint(StrEnum):
    """Generating endpoints, by path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Generation:
    """One request for tokens.

    Attributes:
        fields: the body, without what a client must not set.
        model: the model's name, or None where the client leaves it to the engine.
        stream: whether the answer is a stream of events.
        sequences: how many sequences it makes: prompts times copies.
        copies: `n`, the sequences a prompt.
        combined_only: a sentence, if prefill and decode cannot share this request.
    """

    endpoint: Endpoint
    fields: Fields
    model: str | None = None
    stream: bool = False
    sequences: int = 1
    copies: int = 1
    combined_only: str | None = None


def parse(endpoint: Endpoint, body: bytes) -> Generation:
    """Read a client's body.

    Raises:
        BadRequestError: if it is no JSON object, has neither prompt nor messages, or a field has a type that no engine takes.
    """
    fields = _object(body)
    for name in FORBIDDEN:
        fields.pop(name, None)
    prompts = _prompts(endpoint, fields)
    stream = _value(fields, "stream", bool) or False
    fields["stream"] = Raw(b"true" if stream else b"false")
    n = _value(fields, "n", int)
    copies = max(1, 1 if n is None else n)
    return Generation(
        endpoint=endpoint,
        fields=fields,
        model=_value(fields, "model", str) or None,
        stream=stream,
        sequences=prompts * copies,
        copies=copies,
        combined_only=_combined_only(fields),
    )


def prompt(generation: Generation) -> bytes:
    """The prompts or messages as the client wrote them; empty if it sent embeddings."""
    name = "messages" if generation.endpoint is Endpoint.CHAT else "prompt"
    return bytes(generation.fields.get(name, b""))


def approximate_tokens(generation: Generation) -> int:
    """Tokens of all prompts: exact for token ids, for text a token every CHARACTERS_PER_TOKEN bytes."""
    text = prompt(generation)
    if b'"' in text:
        return max(1, len(text) // CHARACTERS_PER_TOKEN)
    return text.count(b",") + 1


def encoded(value: Any) -> Raw:
    """A field's value, written."""
    return Raw(msgspec.json.encode(value))


def encode(fields: Fields) -> bytes:
    """Write a body."""
    return msgspec.json.encode(fields)


def _object(body: bytes) -> dict[str, Raw]:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        raise BadRequestError("the request body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the request body is not valid JSON: {error}") from None


def _present(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    return value is not None and bytes(value) != _NULL


def _value(fields: Fields, name: str, type_: type[T]) -> T | None:
    """A field as vLLM would take it: "2" is 2 and 1 is true; read otherwise, it would be routed wrongly. The rest is refused."""
    if not _present(fields, name):
        return None
    try:
        return msgspec.convert(msgspec.json.decode(fields[name]), type_, strict=False)
    except msgspec.MsgspecError:
        kind = {bool: "a boolean", int: "an integer", str: "a string"}[type_]
        raise BadRequestError(f"`{name}` must be {kind}", param=name) from None


def _prompts(endpoint: Endpoint, fields: Fields) -> int:
    if endpoint is Endpoint.CHAT:
        if not _present(fields, "messages"):
            raise BadRequestError("you must provide `messages`", param="messages")
        return 1
    if _present(fields, "prompt_embeds"):
        return 1
    if not _present(fields, "prompt"):
        raise BadRequestError("you must provide a `prompt`", param="prompt")
    return count(fields["prompt"])


def count(prompt: Raw) -> int:
    """Prompts in a string, a list of strings, a list of token ids, or a list of such lists."""
    text = bytes(prompt)
    inner = text[1:].lstrip()
    if not text.startswith(b"[") or inner[:1] not in (b'"', b"["):
        return 1
    try:
        return len(msgspec.json.decode(text, type=list[Raw]))
    except msgspec.MsgspecError:
        raise BadRequestError(
            "`prompt` must be a string, a list of strings or lists of token ids", param="prompt"
        ) from None


def _combined_only(fields: Fields) -> str | None:
    best_of: Any = _value(fields, "best_of", int)
    if _value(fields, "echo", bool):
        return "`echo` needs prompt log-probabilities and text that decode does not compute"
    if _present(fields, "prompt_logprobs"):
        return "`prompt_logprobs` are computed by prefill, and decode cannot report them"
    if _value(fields, "use_beam_search", bool) or (best_of is not None and best_of > 1):
        return "beam search (`use_beam_search`, `best_of` above 1) branches after prefill has handed over its KV"
    if _present(fields, "suffix") and bytes(fields["suffix"]) != b'""':
        return "`suffix` is not supported with prefill and decode apart"
    if _present(fields, "prompt_embeds"):
        return "`prompt_embeds` have no token ids by which KV could be handed over"
    return None
