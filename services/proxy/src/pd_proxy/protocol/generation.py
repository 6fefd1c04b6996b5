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

from pd_proxy.errors import BadRequestError, NotStoredError
from pd_proxy.protocol.bounds import check_items, elements
from pd_proxy.protocol.estimate import beside_tokens, messages_tokens, prompt_tokens

T = TypeVar("T")
Fields = Mapping[str, Raw]

# A client that could set these would choose where KV goes or comes from, or an id that breaks the connector's grammar.
FORBIDDEN: Final = ("kv_transfer_params", "ec_transfer_params", "request_id")
# Tools that the client runs. Every other kind is run by the engine, between two generations of one response.
CLIENT_TOOLS: Final = frozenset({"function", "custom", "namespace"})

# Bounds on a body unless the settings say otherwise.
MAX_PROMPTS: Final = 4096
MAX_BODY_ITEMS: Final = 262_144
IMAGE_MAX_TOKENS: Final = 4096

_decoder = msgspec.json.Decoder(dict[str, Raw])
_NULL: Final = b"null"


class Endpoint(StrEnum):
    """Generating endpoints, by path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    RESPONSES = "/v1/responses"


# The field that holds what the model reads.
PROMPT: Final = {Endpoint.COMPLETIONS: "prompt", Endpoint.CHAT: "messages", Endpoint.RESPONSES: "input"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may hold: MAX_PROMPTS and MAX_BODY_ITEMS; and the most tokens that a model makes of an image."""

    prompts: int = MAX_PROMPTS
    items: int = MAX_BODY_ITEMS
    image_max_tokens: int = IMAGE_MAX_TOKENS


DEFAULT_LIMITS: Final = Limits()


class _Tool(msgspec.Struct):
    type: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """One request for tokens.

    Attributes:
        fields: the body, without what a client must not set.
        model: the model's name, or None where the client leaves it to the engine.
        stream: whether the answer is a stream of events.
        sequences: how many sequences it makes: prompts times copies.
        copies: `n`, the sequences a prompt.
        tokens: what the model reads, all prompts together; an estimate but for token ids.
        combined_only: a sentence, if prefill and decode cannot share this request.
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
        BadRequestError: if it is no JSON object, has nothing for the model to read or more than the limits allow, or a field has a type
            that no engine takes.
        NotStoredError: if it needs a stored response.
    """
    check_items(body, limits.items)
    fields = _object(body)
    for name in FORBIDDEN:
        fields.pop(name, None)
    prompts = _prompts(endpoint, fields)
    if prompts > limits.prompts:
        raise BadRequestError(f"`prompt` holds more than {limits.prompts} prompts (MAX_PROMPTS)", param="prompt")
    stream = _value(fields, "stream", bool) or False
    fields["stream"] = Raw(b"true" if stream else b"false")
    copies = 1
    if endpoint is Endpoint.RESPONSES:
        _check_stores_nothing(fields)
        fields["store"] = Raw(b"false")
        not_shared = _engines_own(fields)
    else:
        copies = max(1, _value(fields, "n", int) or 1)
        not_shared = _combined_only(fields)
    return Generation(
        endpoint=endpoint,
        fields=fields,
        model=_value(fields, "model", str) or None,
        stream=stream,
        sequences=prompts * copies,
        copies=copies,
        tokens=_tokens(endpoint, fields, limits),
        combined_only=not_shared or _cut_by_limit(fields),
    )


def prefix(generation: Generation, size: int) -> bytes:
    """How that begins what the model reads, as the client wrote it, the instructions of a response first; empty for embeddings."""
    found = memoryview(generation.fields.get(PROMPT[generation.endpoint], b""))
    if generation.endpoint is Endpoint.RESPONSES:
        return (bytes(generation.fields.get("instructions", b"")) + bytes(found[:size]))[:size]
    return bytes(found[:size])


def approximate_tokens(generation: Generation) -> int:
    """Tokens that a model reads of all prompts: exact for token ids, else estimated from text, tools and media."""
    return generation.tokens


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
    if endpoint is not Endpoint.COMPLETIONS:
        name = PROMPT[endpoint]
        if not _present(fields, name):
            raise BadRequestError(f"you must provide `{name}`", param=name)
        return 1
    if _present(fields, "prompt_embeds"):
        return 1
    if not _present(fields, "prompt"):
        raise BadRequestError("you must provide a `prompt`", param="prompt")
    return count(fields["prompt"])


def count(prompt: Raw) -> int:
    """Prompts in a string, a list of strings, a list of token ids, or a list of such lists."""
    text = bytes(prompt)
    if not text.startswith(b"[") or text[1:64].lstrip()[:1] not in (b'"', b"["):
        return 1
    return elements(text)


def _tokens(endpoint: Endpoint, fields: Fields, limits: Limits) -> int:
    found = beside_tokens(fields)
    text = bytes(fields.get(PROMPT[endpoint], b""))
    if endpoint is Endpoint.COMPLETIONS:
        return max(1, found + prompt_tokens(text))
    return max(1, found + messages_tokens(text, limits.image_max_tokens))


def _check_stores_nothing(fields: Fields) -> None:
    if _value(fields, "background", bool):
        raise NotStoredError(
            "`background` is not served: no response is stored here that you could ask for", param="background"
        )
    if _present(fields, "previous_response_id"):
        reason = "no response is stored here: send what came before in `input`"
        raise NotStoredError(f"`previous_response_id` is not served, because {reason}", param="previous_response_id")


def _engines_own(fields: Fields) -> str | None:
    """As `_combined_only`, of a request for a response."""
    kinds = _tool_kinds(fields)
    if kinds - CLIENT_TOOLS:
        names = ", ".join(f"`{kind[:50]}`" for kind in sorted(kinds - CLIENT_TOOLS))
        return f"tools that the engine runs ({names}) begin generations of which prefill has handed over no KV"
    return None


def _cut_by_limit(fields: Fields) -> str | None:
    """As `_combined_only`: prefill would read more of a prompt that is too long than decode does."""
    kept = _value(fields, "truncate_prompt_tokens", int)
    for name, cut in {
        "truncate_prompt_tokens": kept is not None and kept < 0,
        "truncation": _value(fields, "truncation", str) not in (None, "disabled"),
    }.items():
        if cut:
            return f"`{name}` cuts the prompt by the limit of output tokens, and prefill has another one than decode"
    return None


def _tool_kinds(fields: Fields) -> set[str]:
    """The tools' types; what is no list of tools has none, and engines refuse it."""
    if not _present(fields, "tools"):
        return set()
    try:
        return {tool.type for tool in msgspec.json.decode(fields["tools"], type=list[_Tool])}
    except msgspec.MsgspecError:
        return set()


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
