"""Turns prefill's answer of one token into the beginning of an answer that another engine continues. Pure.

The client must see what a single engine would have sent: chunks in the form of the engine's version, without prefill's finish reason,
and without token ids that only the proxy asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw

from pd_contracts import sse
from pd_proxy.errors import BrokenReplyError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import asks, stops_of
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.rewrite import BLOCK_END, DONE, object_decoder, without_params
from pd_proxy.protocol.usage import NOTHING_SAID, Cached, said

NULL: Final = Raw(b"null")
LENGTH: Final = "length"
# What a decoder writes for bytes that are not a complete character yet.
_INCOMPLETE: Final = "�"

_choices_decoder = msgspec.json.Decoder(list[dict[str, Raw]])


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Prefill's answer.

    Attributes:
        prompt: the prompt's token ids, as JSON.
        reason: the finish reason; LENGTH if there would be more tokens.
        fields: a non-streamed answer; empty for a stream.
        events: a stream's events up to the token; `ending` are the later ones.
        usage: its usage, if it sent one.
        odd: a parser found something other than text (reasoning, tools), so it must see every token.
    """

    token: int
    prompt: Raw
    text: str
    reason: str
    created: bytes
    usage: Raw
    logprobs: Raw
    fields: dict[str, Raw] = field(default_factory=dict)
    events: Sequence[dict[str, Raw]] = ()
    ending: Sequence[dict[str, Raw]] = ()
    odd: bool = False

    def cached(self, endpoint: Endpoint) -> Cached:
        """How many prompt tokens prefill found in its cache."""
        return said(endpoint, self.usage) or NOTHING_SAID


def read(generation: Generation, body: bytes) -> FirstToken:
    """Read prefill's answer, streamed or not, as the client asked.

    Raises:
        BrokenReplyError: if it holds no token.
    """
    try:
        documents = _events(body) if generation.stream else [object_decoder.decode(body)]
        return _read(generation, documents)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, IndexError, ValueError) as error:
        raise BrokenReplyError(f"prefill's answer does not name its token ({type(error).__name__})") from None


def held_back(generation: Generation, first: FirstToken) -> str | None:
    """Why the client may not get this token yet, so that decode has to write the whole answer; None if it may."""
    if first.odd:
        return "reasoning"
    if not first.text or _INCOMPLETE in first.text:
        return "incomplete_text"
    if spans(first.text, stops_of(generation)):
        return "stop_string"
    return None


def spans(text: str, stops: Sequence[str]) -> bool:
    """Whether a stop string may begin in this text and end after it."""
    return any(text.endswith(stop[:size]) for stop in stops for size in range(1, len(stop)))


def opening(generation: Generation, first: FirstToken) -> bytes:
    """The events of prefill's stream, without its finish reason, for an answer that continues."""
    ids = asks(generation, "return_token_ids")
    return b"".join(_event(_unfinished(generation, _without_ids(dict(fields), ids=ids))) for fields in first.events)


def complete_events(generation: Generation, first: FirstToken) -> bytes:
    """All events of prefill's stream except the end mark, for an answer that is complete."""
    ids = asks(generation, "return_token_ids")
    documents = [*first.events, *first.ending]
    return b"".join(_event(_without_ids(dict(fields), ids=ids)) for fields in documents)


def complete_body(generation: Generation, first: FirstToken) -> bytes:
    """Prefill's non-streamed answer, if it is complete."""
    fields = _without_ids(dict(first.fields), ids=asks(generation, "return_token_ids"))
    without_params(fields)
    return msgspec.json.encode(fields)


def choices_of(fields: dict[str, Raw]) -> list[dict[str, Raw]]:
    """The choices of an answer or a chunk."""
    return _choices_decoder.decode(fields["choices"]) if "choices" in fields else []


def value_of(fields: dict[str, Raw], name: str) -> Any:
    """A field's value; None if there is none."""
    return msgspec.json.decode(fields[name]) if name in fields else None


def _events(body: bytes) -> list[dict[str, Raw]]:
    found = []
    for block in body.split(BLOCK_END):
        _, mark, payload = block.partition(b"data:")
        if mark and payload.strip() != DONE:
            found.append(object_decoder.decode(payload))
    return found


def _read(generation: Generation, documents: list[dict[str, Raw]]) -> FirstToken:
    chat = generation.endpoint is Endpoint.CHAT
    prompt, token_at, choice, events = NULL, -1, dict[str, Raw](), []
    for at, fields in enumerate(documents):
        choices = choices_of(fields)
        prompt = (
            _given(fields, "prompt_token_ids")
            or (_given(choices[0], "prompt_token_ids") if choices else None)
            or prompt
        )
        if choices and _given(choices[0], "token_ids") and token_at < 0:
            token_at, choice = at, choices[0]
        if token_at < 0 or at == token_at:
            events.append(fields)
    fields = documents[token_at]
    (token,) = msgspec.json.decode(choice["token_ids"], type=list[int])
    text, odd = _said(choice, chat=chat)
    if bytes(prompt) == b"null" or token_at < 0:
        raise ValueError("no token ids")
    whole = not generation.stream
    return FirstToken(
        token=token,
        prompt=prompt,
        text=text,
        reason=value_of(choice, "finish_reason") or LENGTH,
        created=bytes(fields["created"]),
        fields=fields if whole else {},
        events=() if whole else events,
        ending=documents[token_at + 1 :],
        usage=next((_given(one, "usage") or NULL for one in reversed(documents) if _given(one, "usage")), NULL),
        logprobs=_given(choice, "logprobs") or NULL,
        odd=odd or _parses(documents),
    )


def _given(fields: dict[str, Raw], name: str) -> Raw | None:
    value = fields.get(name)
    return value if value is not None and bytes(value) not in (b"null", b"[]") else None


def _said(choice: dict[str, Raw], *, chat: bool) -> tuple[str, bool]:
    """The text of a choice, and whether it holds anything else."""
    if not chat:
        return value_of(choice, "text") or "", False
    said = value_of(choice, "message") or value_of(choice, "delta") or {}
    beside = ("reasoning", "reasoning_content", "tool_calls", "function_call", "refusal")
    return said.get("content") or "", any(said.get(name) for name in beside)


def _parses(documents: list[dict[str, Raw]]) -> bool:
    """Whether the engine has a reasoning parser: then its usage counts reasoning tokens."""
    return any(b'"reasoning_tokens"' in bytes(fields.get("usage", b"")) for fields in documents)


def _event(fields: dict[str, Raw]) -> bytes:
    return sse.encode_event(msgspec.json.encode(fields))


def _without_ids(fields: dict[str, Raw], *, ids: bool) -> dict[str, Raw]:
    """The fields without token ids, unless the client asked for them."""
    if ids:
        return fields
    choices = choices_of(fields)
    for holder in (fields, *choices):
        for name in ("prompt_token_ids", "token_ids"):
            if name in holder:
                holder[name] = NULL
    if choices:
        fields["choices"] = Raw(msgspec.json.encode(choices))
    return fields


def _unfinished(generation: Generation, fields: dict[str, Raw]) -> dict[str, Raw]:
    """A chunk without the finish reason that prefill's limit of one token caused; chat chunks have a stop reason only at the end."""
    fields.pop("system_fingerprint", None)
    choices = choices_of(fields)
    for choice in choices:
        choice["finish_reason"] = NULL
        if "stop_reason" in choice and generation.endpoint is Endpoint.CHAT:
            del choice["stop_reason"]
        elif "stop_reason" in choice:
            choice["stop_reason"] = NULL
    fields["choices"] = Raw(msgspec.json.encode(choices))
    return fields
