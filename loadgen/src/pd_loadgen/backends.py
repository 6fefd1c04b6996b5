"""Request bodies and stream chunks of the servers that can be measured: one frozen object a protocol, no I/O.

A chunk is a token chunk if it carries generated output. OpenAI-compatible servers also send chunks that are none: the role of a
chat answer, usage, a finish reason alone. And vLLM sends chunks with empty text for tokens whose bytes are no whole character yet:
these are tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec

from pd_loadgen.datasets import Prompt


class Endpoint(StrEnum):
    """Which API is spoken."""

    COMPLETIONS = "completions"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Delta:
    """What one chunk says.

    Attributes:
        tokens: how many tokens it certainly carries.
        blank: output without text that ends the stream; whether it is a token shows in the usage (an end-of-text token is).
        text: generated text.
        token_ids: ids of the tokens, where the server sends them.
        error: the server's message, if the chunk reports one.
    """

    tokens: int = 0
    blank: bool = False
    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None


class Backend(Protocol):
    """One protocol of a server."""

    @property
    def path(self) -> str:
        """Where requests go, below the base URL."""
        ...

    def body(
        self, prompt: Prompt, *, model: str, output_tokens: int, ignore_eos: bool, return_token_ids: bool
    ) -> bytes:
        """The JSON of one streamed, greedy request."""
        ...

    def read(self, data: str) -> Delta:
        """Read one event's data. Raises msgspec.MsgspecError if it is none of this protocol."""
        ...


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class Completions:
    """OpenAI's `/v1/completions`, with vLLM's options where asked for; takes token ids and text."""

    path: str = "/v1/completions"

    def body(
        self, prompt: Prompt, *, model: str, output_tokens: int, ignore_eos: bool, return_token_ids: bool
    ) -> bytes:
        """The JSON of one streamed, greedy request."""
        common = _common(model, output_tokens, ignore_eos=ignore_eos, return_token_ids=return_token_ids)
        return msgspec.json.encode({**common, "prompt": prompt})

    def read(self, data: str) -> Delta:
        """Read one event's data."""
        return _delta(data)


@dataclass(frozen=True, slots=True)
class Chat:
    """OpenAI's `/v1/chat/completions`; takes text only."""

    path: str = "/v1/chat/completions"

    def body(
        self, prompt: Prompt, *, model: str, output_tokens: int, ignore_eos: bool, return_token_ids: bool
    ) -> bytes:
        """The JSON of one streamed, greedy request."""
        common = _common(model, output_tokens, ignore_eos=ignore_eos, return_token_ids=return_token_ids)
        return msgspec.json.encode({**common, "messages": [{"role": "user", "content": prompt}]})

    def read(self, data: str) -> Delta:
        """Read one event's data."""
        return _delta(data)


BACKENDS: Final[Mapping[Endpoint, Backend]] = {Endpoint.COMPLETIONS: Completions(), Endpoint.CHAT: Chat()}


def _common(model: str, output_tokens: int, *, ignore_eos: bool, return_token_ids: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # Both are vLLM's; a server that does not know them may refuse them, so they are sent only when wanted.
    if ignore_eos:
        body["ignore_eos"] = True
    if return_token_ids:
        body["return_token_ids"] = True
    return body


def _delta(data: str) -> Delta:
    chunk = _decoder.decode(data)
    usage = chunk.usage or _Usage()
    if chunk.error is not None:
        return Delta(error=_error_text(chunk.error))
    if not chunk.choices:
        return Delta(prompt_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
    choice = chunk.choices[0]
    text, output, only_role = _output(choice)
    ids = tuple(choice.token_ids or ())
    blank = not text and not output and not ids and not only_role and _has_field(choice)
    last = choice.finish_reason is not None
    return Delta(
        tokens=len(ids) or int(output or (blank and not last)),
        blank=blank and last,
        text=text,
        token_ids=ids,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        finish_reason=choice.finish_reason,
    )


def _output(choice: _Choice) -> tuple[str, bool, bool]:
    """Generated text, whether there is output at all (a tool call has no text), and whether the chunk only names the role."""
    message = choice.delta
    if message is None:
        return choice.text or "", bool(choice.text), False
    text = (message.reasoning or message.reasoning_content or "") + (message.content or "")
    return text, bool(text or message.tool_calls), message.role is not None


def _has_field(choice: _Choice) -> bool:
    return choice.text is not None or (choice.delta is not None and choice.delta.content is not None)


def _error_text(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:500]
