"""The length of answers, and prefill's number of cached prompt tokens in place of decode's. Pure.

For decode, everything that prefill hands over looks cached. For the client there is one server, whose cache had what prefill found in
its own.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from pd_proxy.protocol.endpoints import Endpoint

# Only answers that hold one of these are parsed; inside a text the quotes are escaped.
CACHED_KEYS: Final = (b'"cached_tokens"', b'"cache_read_input_tokens"')

Fields = dict[str, Raw]


class Cached(msgspec.Struct, frozen=True):
    """Prefill's number of cached tokens: the member of its usage as it wrote it, and the number."""

    details: Raw
    tokens: int


NOTHING_SAID: Final = Cached(Raw(b"null"), 0)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: Raw = Raw(b"null")
    input_tokens_details: Raw = Raw(b"null")
    cache_read_input_tokens: int | None = None


class _Written(msgspec.Struct):
    completion_tokens: int | None = None
    output_tokens: int | None = None


class _Counted(msgspec.Struct):
    usage: _Written | None = None


_usage = msgspec.json.Decoder(_Usage | None)
_counted = msgspec.json.Decoder(_Counted)
_details = msgspec.json.Decoder(_Details | None)
_object = msgspec.json.Decoder(dict[str, Raw])
# The field of each endpoint's usage that holds it.
_MEMBER: Final = {Endpoint.RESPONSES: "input_tokens_details"}
_MEMBER_ELSEWHERE: Final = "prompt_tokens_details"
_OF_MESSAGES: Final = ("cache_read_input_tokens", "input_tokens")


def tokens_of(answer: bytes) -> int:
    """Output tokens of a non-streamed answer; 0 if it has no usage."""
    try:
        usage = _counted.decode(answer).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    return (usage.completion_tokens or usage.output_tokens or 0) if usage is not None else 0


def said(endpoint: Endpoint, told: Raw | None) -> Cached | None:
    """The number in the usage of prefill's answer; None if it has no usage."""
    try:
        usage = _usage.decode(told) if told is not None else None
        if usage is None:
            return None
        if endpoint is Endpoint.MESSAGES:
            return Cached(Raw(b"null"), usage.cache_read_input_tokens or 0)
        details: Raw = getattr(usage, _MEMBER.get(endpoint, _MEMBER_ELSEWHERE))
        found = _details.decode(details)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Cached(details, (found.cached_tokens or 0) if found is not None else 0)


def corrected(endpoint: Endpoint, answer: Mapping[str, Raw], cached: Cached) -> Fields | None:
    """An answer or event with prefill's number in its usage; None if there is nothing to correct.

    Raises:
        msgspec.MsgspecError: if a part of it has an unexpected type.
    """
    for name in ("response", "message"):  # events that hold the whole answer
        if name in answer and _named(answer[name]):
            inner = corrected(endpoint, _object.decode(answer[name]), cached)
            return None if inner is None else {**answer, name: Raw(msgspec.json.encode(inner))}
    if "usage" not in answer or not _named(answer["usage"]):
        return None
    usage = _object.decode(answer["usage"])
    if endpoint is Endpoint.MESSAGES:
        usage = _message_usage(usage, cached.tokens)
    else:
        usage[_MEMBER.get(endpoint, _MEMBER_ELSEWHERE)] = cached.details
    return {**answer, "usage": Raw(msgspec.json.encode(usage))}


def _named(value: Raw) -> bool:
    return any(key in bytes(value) for key in CACHED_KEYS)


def _message_usage(usage: Fields, cached: int) -> Fields:
    """Anthropic's `input_tokens` do not include cached tokens."""
    numbers = [msgspec.json.decode(usage.get(name, b"0"), type=int | None) for name in _OF_MESSAGES]
    found = {_OF_MESSAGES[0]: cached, _OF_MESSAGES[1]: max(0, sum(filter(None, numbers)) - cached)}
    return usage | {name: Raw(msgspec.json.encode(value)) for name, value in found.items()}
