"""The answer of an engine that goes on where another one ended, made one answer with what the client has. Pure.

To that engine the tokens before are part of the prompt: it counts them there, and says again who speaks.
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
from pd_proxy.protocol.rewrite import BLOCK_END, Cleaning, StreamRewriter, object_decoder, without_params
from pd_proxy.protocol.usage import corrected

# In a text the quotes are escaped, so this is the key.
USAGE_KEY: Final = b'"usage":'
# How P2pConnector says why a request could not go on (`pd_connector.engine.compat.STOP_REASON`).
# What a parser tells apart in a chunk of chat.
ODD: Final = frozenset({"reasoning", "reasoning_content", "tool_calls", "function_call"})
STOP_REASON: Final = "pd: "


@dataclass(frozen=True, slots=True)
class Begun:
    """What the client has of an answer.

    Attributes:
        tokens: how many tokens; the engine that goes on takes them for prompt. 0 if nothing has come yet.
        uuid: what the client sees of the answer's id.
        created: when the answer began, as JSON.
        offset: characters of text in front of the next token, as log-probabilities count them; None if nobody asked for them.
        skip: so many characters of what comes the client has already, `skip_ids` so many token ids.
    """

    tokens: int = 0
    uuid: str = ""
    created: bytes = b""
    offset: int | None = None
    skip: int = 0
    skip_ids: int = 0


NOTHING: Final = Begun()


class PartRewriter(StreamRewriter):
    """As its base, for one part of an answer. As soon as nothing needs a closer look, events pass unread, or with a glance at their tokens.

    `moved` says that something of it went to the client.
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
        """`begun` is what came before; `progress`, if anybody needs it, is told what goes to the client."""
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
            NotContinuedError: if the engine cannot go on from there.
        """
        data = super().feed(data)
        if data and (not self.by_chunks or self.progress is not None or USAGE_KEY in data):
            data = b"".join(self._event(block) for block in BLOCK_END.split(data) if block)
        if self.secret:
            data = data.replace(self.secret, self.put)
        return data

    def check_first(self, first: bytes) -> None:
        """As its base; but if there is a beginning, the client has it already."""
        if not self._begun.tokens:
            super().check_first(first)

    def _event(self, block: bytes) -> bytes:
        head, mark, payload = block.partition(b"data:")
        if not mark:
            return block + b"\n\n"
        try:
            fields = self._shown(object_decoder.decode(payload))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BrokenReplyError("an event of the engine's stream is not valid JSON") from None
        return head + mark + b" " + msgspec.json.encode(fields) + b"\n\n" if fields else b""

    def _shown(self, fields: dict[str, Raw]) -> dict[str, Raw]:
        """An event as the client may see it; empty if it has all of it."""
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
        """Before anything of this engine went to the client, somebody else may still go on instead."""
        if "error" in fields:
            raise NotContinuedError("the engine that should continue the stream reports an error")
        for choice in choices_of(fields):
            if str(value_of(choice, "stop_reason") or "").startswith(STOP_REASON):
                raise NotContinuedError("the engine that should continue the stream got no token to continue from")
        created = b'"created":' + bytes(fields.get("created", self._begun.created))
        if not self._renamed and created != b'"created":' + self._begun.created:
            self.secret, self.put = created, b'"created":' + self._begun.created

    def _note_prompt(self, fields: dict[str, Raw], choice: dict[str, Raw]) -> None:
        """The first chunk says the prompt's token ids, if the client asked for them."""
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
        """Take out what the client has; False if there was something, and there is nothing else."""
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
        # A chunk without text is still a token, which log-probabilities name.
        return bool(new or new_ids or ends) or (new == text and new_ids == ids)

    def _new(self, text: str, ids: list[int]) -> tuple[str, list[int]]:
        """What of a chunk the client does not have yet."""
        known, known_ids = min(self._skip, len(text)), min(self._skip_ids, len(ids))
        self._skip -= known
        self._skip_ids -= known_ids
        return text[known:], ids[known_ids:]


def counted(fields: dict[str, Raw], tokens: int) -> None:
    """Count so many tokens as output instead of prompt, where an answer or an event counts."""
    usage: Any = value_of(fields, "usage")
    if usage:
        usage["prompt_tokens"] -= tokens
        usage["completion_tokens"] = (usage.get("completion_tokens") or 0) + tokens
        fields["usage"] = Raw(msgspec.json.encode(usage))


def shifted(logprobs: Raw, offset: int) -> Raw:
    """Log-probabilities of a completion whose text begins that much later; those of chat have no places."""
    found: Any = msgspec.json.decode(logprobs)
    if not isinstance(found, dict) or "text_offset" not in found:
        return logprobs
    found["text_offset"] = [at + offset for at in found["text_offset"]]
    return Raw(msgspec.json.encode(found))


def end_offset(logprobs: Raw) -> int:
    """Where the text behind these log-probabilities begins; 0 for those of chat."""
    found: Any = msgspec.json.decode(logprobs)
    if not isinstance(found, dict) or not found.get("text_offset"):
        return 0
    return int(found["text_offset"][-1]) + len(found["tokens"][-1])


def joined(generation: Generation, first: FirstToken, body: bytes) -> bytes:
    """An answer in one piece: prefill's token, and what decode wrote.

    Raises:
        BrokenReplyError: if decode's answer is none.
        NotContinuedError: if decode could not go on.
    """
    try:
        fields = object_decoder.decode(body)
        fields = corrected(generation.endpoint, fields, first.cached(generation.endpoint)) or fields
        (choice,) = choices_of(fields)
        if str(value_of(choice, "stop_reason") or "").startswith(STOP_REASON):
            raise NotContinuedError("decode got no token to go on from")
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
