"""Joins the answer of an engine that continues another one's answer with what the client already has. Pure.

For that engine the earlier tokens are part of the prompt: it counts them there, and sends the role again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from pd_proxy.errors import BrokenReplyError, NotContinuedError
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import asks
from pd_proxy.protocol.first_token import NULL, FirstToken, choices_of, value_of
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.progress import Progress
from pd_proxy.protocol.rewrite import BLOCK_END, NOT_JSON, Cleaning, StreamRewriter, object_decoder, without_params
from pd_proxy.protocol.usage import corrected

# Inside a text the quotes are escaped, so this matches only the key.
USAGE_KEY: Final = b'"usage":'
# The fields that a parser separates in a chat chunk.
ODD: Final = frozenset({"reasoning", "reasoning_content", "tool_calls", "function_call"})
# The stop reason with which P2pConnector says that a request could not be continued (`pd_connector.engine.compat.STOP_REASON`).
STOP_REASON: Final = "pd: "


@dataclass(frozen=True, slots=True)
class Begun:
    """The beginning of an answer, which the client already has.

    Attributes:
        tokens: the number of tokens, which are part of the prompt for the engine that continues; 0 if none has been sent.
        uuid: the part of the answer's id that the client sees.
        created: when the answer began, as JSON.
        offset: characters of text before the next token, as log-probabilities count them; None if the client did not ask for them.
        skip: how many of the following characters the client already has; `skip_ids`: how many token ids.
    """

    tokens: int = 0
    uuid: str = ""
    created: bytes = b""
    offset: int | None = None
    skip: int = 0
    skip_ids: int = 0


NOTHING: Final = Begun()


class PartRewriter(StreamRewriter):
    """As its base class, for one part of an answer. Once no event needs changes, events pass unparsed, or only their tokens are read.

    `moved`: the client has been sent something of this part.
    """

    by_chunks = False

    def __init__(
        self,
        begun: Begun,
        engine_id: str,
        cleaning: Cleaning,
        *,
        progress: Progress | None = None,
        addresses: Iterable[str] = (),
    ) -> None:
        """`begun` is the part before this one; `progress`, if given, records what is sent to the client."""
        super().__init__(cleaning.secret, addresses, endpoint=cleaning.endpoint, cached=cleaning.cached)
        self.moved = False
        self._renamed = bool(begun.tokens) and engine_id != begun.uuid
        if self._renamed:
            self.secret, self.put = engine_id.encode(), begun.uuid.encode()
        if begun.tokens:
            self.mark = USAGE_KEY
        self.progress = progress
        self.glance = progress.glance if progress is not None else None
        self._begun = begun
        self._chat = cleaning.endpoint is Endpoint.CHAT
        self._skip = begun.skip
        self._skip_ids = begun.skip_ids

    def feed(self, data: bytes) -> bytes:
        """As its base.

        Raises:
            NotContinuedError: if the engine cannot continue from there.
        """
        data = super().feed(data)
        if data and (not self.by_chunks or self.progress is not None or USAGE_KEY in data):
            data = b"".join(self._event(block) for block in data.split(BLOCK_END) if block)
        if self.secret:
            data = data.replace(self.secret, self.put)
        return data

    def check_first(self, first: bytes) -> None:
        """As in the base class; but if there is a beginning, the client already has it."""
        if not self._begun.tokens:
            super().check_first(first)

    def _event(self, block: bytes) -> bytes:
        head, mark, payload = block.partition(b"data:")
        if not mark:
            return block + b"\n\n"
        try:
            fields = self._shown(object_decoder.decode(payload))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BrokenReplyError(NOT_JSON) from None
        return head + mark + b" " + msgspec.json.encode(fields) + b"\n\n" if fields else b""

    def _shown(self, fields: dict[str, Raw]) -> dict[str, Raw]:
        """An event as the client may see it; empty if the client already has all of it."""
        if not self.moved and self._begun.tokens:
            self._check(fields)
        counted(fields, self._begun.tokens)
        if self._renamed:
            fields["created"] = Raw(self._begun.created)
        choices = choices_of(fields)
        if not choices:
            return fields
        self._note_prompt(fields, choices[0])
        if self._chat and _role(choices[0]):
            return {} if self._begun.tokens else fields
        shown = [choice for choice in choices if self._choice(choice)]
        self.moved = True
        self.by_chunks = (
            not self._skip
            and not self._skip_ids
            and not self._renamed
            and self._begun.offset is None
            and (self.progress is None or self.progress.in_passing)
        )
        if not shown:
            return {}
        fields["choices"] = Raw(msgspec.json.encode(shown))
        return fields

    def _check(self, fields: dict[str, Raw]) -> None:
        """Check events before the client has been sent anything from this engine; until then, another engine can still take over."""
        if "error" in fields:
            raise NotContinuedError("the engine that should continue the stream reports an error")
        for choice in choices_of(fields):
            if str(value_of(choice, "stop_reason") or "").startswith(STOP_REASON):
                raise NotContinuedError("the engine that should continue the stream got no token to continue from")
        created = b'"created":' + bytes(fields.get("created", self._begun.created))
        if not self._renamed and created != b'"created":' + self._begun.created:
            self.secret, self.put = created, b'"created":' + self._begun.created

    def _note_prompt(self, fields: dict[str, Raw], choice: dict[str, Raw]) -> None:
        """Note the prompt's token ids, which the first chunk holds if the client asked for them."""
        progress = self.progress
        for holder in (fields, choice):
            ids = holder.get("prompt_token_ids")
            if ids is None or bytes(ids) == b"null":
                continue
            if progress is not None and progress.prompt is None:
                progress.prompt, progress.created = ids, bytes(fields.get("created", b"0"))
            if self._begun.tokens or (progress is not None and not progress.asked):
                holder["prompt_token_ids"] = NULL

    def _choice(self, choice: dict[str, Raw]) -> bool:
        """Remove what the client already has; returns False if nothing else is left."""
        if self._begun.offset is not None and "logprobs" in choice:
            choice["logprobs"] = shifted(choice["logprobs"], self._begun.offset)
        said = choice if not self._chat else msgspec.json.decode(choice.get("delta", b"{}"), type=dict[str, Raw])
        if self.progress is not None and said.keys() & ODD:
            self.progress.odd = True
        name = "content" if self._chat else "text"
        text, ids = value_of(said, name) or "", value_of(choice, "token_ids") or []
        new, new_ids = self._new(text, ids)
        if new != text:
            said[name] = Raw(msgspec.json.encode(new))
            if self._chat:
                choice["delta"] = Raw(msgspec.json.encode(said))
        ends = value_of(choice, "finish_reason") is not None
        if self.progress is not None:
            self.progress.add(new_ids, new)
            self.progress.finished = self.progress.finished or ends
        if ids:
            shows = self.progress is None or self.progress.asked
            choice["token_ids"] = Raw(msgspec.json.encode(new_ids)) if shows else NULL
        # A chunk without text may still hold a token, which its log-probabilities name.
        return bool(new or new_ids or ends) or (new == text and new_ids == ids)

    def _new(self, text: str, ids: list[int]) -> tuple[str, list[int]]:
        """The text and token ids of a chunk that the client does not have yet."""
        known, known_ids = min(self._skip, len(text)), min(self._skip_ids, len(ids))
        self._skip -= known
        self._skip_ids -= known_ids
        return text[known:], ids[known_ids:]


def counted(fields: dict[str, Raw], tokens: int) -> None:
    """In the usage of an answer or event, count `tokens` tokens as output instead of prompt."""
    usage: Any = value_of(fields, "usage")
    if usage:
        usage["prompt_tokens"] -= tokens
        usage["completion_tokens"] = (usage.get("completion_tokens") or 0) + tokens
        fields["usage"] = Raw(msgspec.json.encode(usage))


def shifted(logprobs: Raw, offset: int) -> Raw:
    """A completion's log-probabilities with text offsets moved by `offset`; those of a chat have no offsets."""
    found: Any = msgspec.json.decode(logprobs)
    if not isinstance(found, dict) or "text_offset" not in found:
        return logprobs
    found["text_offset"] = [at + offset for at in found["text_offset"]]
    return Raw(msgspec.json.encode(found))


def end_offset(logprobs: Raw) -> int:
    """The text offset after these log-probabilities; 0 for those of a chat."""
    found: Any = msgspec.json.decode(logprobs)
    if not isinstance(found, dict) or not found.get("text_offset"):
        return 0
    return int(found["text_offset"][-1]) + len(found["tokens"][-1])


def joined(generation: Generation, first: FirstToken, body: bytes) -> bytes:
    """A non-streamed answer: prefill's token, then decode's output.

    Raises:
        BrokenReplyError: if decode's answer is invalid.
        NotContinuedError: if decode could not continue.
    """
    try:
        fields = object_decoder.decode(body)
        fields = corrected(generation.endpoint, fields, first.cached(generation.endpoint)) or fields
        (choice,) = choices_of(fields)
        if str(value_of(choice, "stop_reason") or "").startswith(STOP_REASON):
            raise NotContinuedError("decode got no token to continue from")
        _join(generation, first, fields, choice)
        fields["choices"] = Raw(msgspec.json.encode([choice]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, KeyError, TypeError):
        raise BrokenReplyError("decode's answer is not valid JSON, or has no choice") from None
    return msgspec.json.encode(fields)


def _join(generation: Generation, first: FirstToken, fields: dict[str, Raw], choice: dict[str, Raw]) -> None:
    (before,) = choices_of(first.fields)
    ids = asks(generation, "return_token_ids")
    if generation.endpoint is Endpoint.CHAT:
        message = msgspec.json.decode(choice["message"], type=dict[str, Raw])
        message["content"] = Raw(msgspec.json.encode(first.text + (value_of(message, "content") or "")))
        choice["message"] = Raw(msgspec.json.encode(message))
    else:
        choice["text"] = Raw(msgspec.json.encode(first.text + (value_of(choice, "text") or "")))
    for holder, source in ((fields, first.fields), (choice, before)):
        if "prompt_token_ids" in holder:
            holder["prompt_token_ids"] = source.get("prompt_token_ids", NULL) if ids else NULL
    if "prompt_text" in fields:  # decode has got the prompt as token ids
        fields["prompt_text"] = first.fields.get("prompt_text", NULL)
    if ids and value_of(choice, "token_ids") is not None:
        choice["token_ids"] = Raw(msgspec.json.encode([first.token, *(value_of(choice, "token_ids") or [])]))
    if value_of(choice, "logprobs") is not None:
        choice["logprobs"] = _both(first.logprobs, choice["logprobs"])
    fields["created"], fields["id"] = Raw(first.created), first.fields["id"]
    counted(fields, 1)
    without_params(fields)


def _both(first: Raw, rest: Raw) -> Raw:
    """The log-probabilities of the whole answer, list by list."""
    before: Any = msgspec.json.decode(first)
    behind: Any = msgspec.json.decode(shifted(rest, end_offset(first)))
    merged = {
        name: (before.get(name) or []) + (value or []) if isinstance(value, list) else value
        for name, value in behind.items()
    }
    return Raw(msgspec.json.encode(merged))


def _role(choice: dict[str, Raw]) -> bool:
    delta = value_of(choice, "delta") or {}
    return bool(delta.get("role"))
