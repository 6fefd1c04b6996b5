"""Which requests an engine may continue from another engine's token, and which not, because their answer would change. Pure.

For decode, a token that it did not write is part of the prompt. Whatever works on the output (a grammar, a penalty, a parser) would not
see it. `X-PD-Timing` and `/metrics` show the reasons under these names.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from pd_proxy.protocol.body import UNREADABLE, Fields, present, readable
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.generation import Generation

OFF: Final = "off"
ENDPOINT: Final = "endpoint"
SEQUENCES: Final = "several_sequences"
MEDIA: Final = "media"
SEED: Final = "seed"
LIMIT: Final = "max_tokens"
LEAST: Final = "min_tokens"
UNNAMED: Final = "no_token_ids"
REFUSED: Final = "refused"
NO_IDS: Final = "engine_version"


def _anything(_: Any) -> bool:
    return True


def _something(value: Any) -> bool:
    return value not in ([], {}, "", False)


def _is_not(*neutral: Any) -> Callable[[Any], bool]:
    return lambda value: value not in neutral


# Field, the test of whether it matters, and the reason. A repetition penalty is not among them, because it counts tokens of prompt and answer alike.
_FIELDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "response_format": (lambda value: value != {"type": "text"}, "structured_output"),
    "structured_outputs": (_something, "structured_output"),
    "structural_tag": (_something, "structured_output"),
    "presence_penalty": (_is_not(0), "penalties"),
    "frequency_penalty": (_is_not(0), "penalties"),
    "repetition_detection": (_something, "penalties"),
    "watermarking": (_something, "logits_processors"),
    "bad_words": (_something, "bad_words"),
    "use_beam_search": (_something, "beam_search"),
    "stop": (lambda value: value is UNREADABLE, "stop_string"),
    "echo": (_something, "echo"),
    "prompt_logprobs": (_anything, "echo"),
    "suffix": (_something, "suffix"),
    "prompt_embeds": (_anything, "prompt_embeds"),
    "logits_processors": (_something, "logits_processors"),
    "vllm_xargs": (_something, "logits_processors"),
    "tools": (_something, "tools"),
    "functions": (_something, "tools"),
    "thinking_token_budget": (_anything, "reasoning"),
    "include_reasoning": (_is_not(True), "reasoning"),
    "truncate_prompt_tokens": (_anything, "truncation"),
    # The space between two special tokens depends on the first one, which decode would not know as a special token of the output.
    "skip_special_tokens": (_is_not(True), "special_tokens"),
    "spaces_between_special_tokens": (_is_not(True), "special_tokens"),
    "detokenize": (_is_not(True), "special_tokens"),
    # Chunks of several tokens would start again at the hand-over.
    "stream_interval": (_is_not(1), "stream_interval"),
    "return_token_offsets": (_something, "offsets"),
}


class _Part(msgspec.Struct):
    type: str = "text"


class _Message(msgspec.Struct):
    content: str | list[_Part | str] | None = None
    tool_calls: Raw | None = None


def may_hand_off(
    generation: Generation, *, by_position: bool = False, own_fields: Collection[str] = (), own_limit: int = 0
) -> str | None:
    """Why one engine must write the whole answer; None if another one may continue after any token.

    `by_position`: both draw by seed and position in the same way, so one that continues draws what the first one would have drawn.
    `own_fields`, `own_limit`: as in `Told`, of the engine that continues. Stop strings are treated in `first_token.held_back`.
    """
    return (
        _together(generation)
        or _by_engine(generation, own_fields, own_limit)
        or (SEED if seeded(generation) and not by_position else None)
    )


def _by_engine(generation: Generation, own_fields: Collection[str], own_limit: int) -> str | None:
    """As `may_hand_off`, of what an engine does to answers although the request does not ask for it; the engine that continues would begin anew."""
    for name in own_fields:
        if not present(generation.fields, name):
            return _FIELDS[name][1] if name in _FIELDS else name
    limit = limit_of(generation) if own_limit else 0
    return LIMIT if limit is None or limit > own_limit else None


def _together(generation: Generation) -> str | None:
    """As `may_hand_off`, apart from how tokens are drawn."""
    if generation.endpoint not in (Endpoint.COMPLETIONS, Endpoint.CHAT):
        return ENDPOINT
    if generation.sequences != 1:
        return SEQUENCES
    return _by_field(generation.fields) or _by_kind(generation)


def _by_field(fields: Fields) -> str | None:
    for name in _FIELDS.keys() & fields.keys():
        matters, reason = _FIELDS[name]
        if present(fields, name) and matters(readable(fields, name)):
            return reason
    return None


def _by_kind(generation: Generation) -> str | None:
    fields, limit = generation.fields, limit_of(generation)
    if limit is not None and not _is_limit(limit):
        return LIMIT
    if present(fields, "min_tokens") and type(readable(fields, "min_tokens")) is not int:
        return LEAST  # vLLM takes "5" and 5.0, too
    if generation.endpoint is Endpoint.CHAT and not _is_text(fields["messages"]):
        return MEDIA
    return None


def may_migrate(
    generation: Generation, *, by_position: bool = False, own_fields: Collection[str] = (), own_limit: int = 0
) -> str | None:
    """As `may_hand_off`, if the following tokens must be the same that the first engine would have written."""
    reason = may_hand_off(generation, by_position=by_position, own_fields=own_fields, own_limit=own_limit)
    if reason is None and not seeded(generation) and not _greedy(generation.fields):
        return "sampling"
    if reason is None and wants_logprobs(generation):
        return "logprobs"
    return reason


def seeded(generation: Generation) -> bool:
    """Whether a seed decides what is drawn; for vLLM, -1 is none."""
    fields = generation.fields
    return present(fields, "seed") and bytes(fields["seed"]).strip() != b"-1" and not _greedy(fields)


def limit_of(generation: Generation) -> Any:
    """The client's limit of output tokens; None if it set none."""
    names = ("max_tokens",) if generation.endpoint is Endpoint.COMPLETIONS else ("max_completion_tokens", "max_tokens")
    for name in names:
        if present(generation.fields, name):
            return readable(generation.fields, name)
    return 16 if generation.endpoint is Endpoint.COMPLETIONS else None


def minimum_of(generation: Generation) -> int:
    """`min_tokens`; a value that is not a number counts as 0, and the engine refuses it."""
    value = readable(generation.fields, "min_tokens")
    return value if _is_limit(value) else 0


def stops_of(generation: Generation) -> tuple[str, ...]:
    """The stop strings."""
    value = readable(generation.fields, "stop")
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def asks(generation: Generation, name: str) -> bool:
    """Whether the client switched a field on."""
    return present(generation.fields, name) and readable(generation.fields, name) not in (False, 0, "", "0")


def wants_logprobs(generation: Generation) -> bool:
    """Whether the client wants log-probabilities; for completions, 0 asks for them, too."""
    return present(generation.fields, "logprobs") and readable(generation.fields, "logprobs") is not False


def _is_limit(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _greedy(fields: Fields) -> bool:
    """Whether the temperature is 0. Without one, the model's default applies, which is rarely 0."""
    value = readable(fields, "temperature")
    return isinstance(value, int | float) and value == 0


def _is_text(messages: Raw) -> bool:
    if b'"type"' not in bytes(messages):
        return True
    try:
        found = msgspec.json.decode(messages, type=list[_Message])
    except (msgspec.MsgspecError, RecursionError):
        return False
    parts = [part for message in found if isinstance(message.content, list) for part in message.content]
    return all(isinstance(part, str) or part.type == "text" for part in parts)
