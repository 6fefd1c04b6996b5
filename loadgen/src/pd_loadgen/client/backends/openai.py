"""OpenAI's completions and chat, as vLLM, SGLang, DeepSpeed-MII and many others serve them; no I/O.

A chunk is a token chunk if it carries generated output. Servers also send chunks that are none: the role of a chat answer, usage, a
finish reason alone. And vLLM sends chunks with empty text for tokens whose bytes are no whole character yet: these are tokens.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from pd_loadgen.client.backends.base import ABORTED, GIVEN_UP, Ask, Delta, Reader, error_text, no_messages, only_text
from pd_loadgen.prompts.datasets import Prompt


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


class OpenAIReader:
    """Reads chunks of both APIs; each stands for itself."""

    def read(self, data: str) -> Delta:
        """Read one event's data."""
        return _delta(data)


@dataclass(frozen=True, slots=True)
class Completions:
    """OpenAI's `/v1/completions`, with vLLM's options where asked for; takes token ids and text."""

    path: str = "/v1/completions"
    ready_path: str = "/v1/models"
    end_mark: bool = True

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        return msgspec.json.encode(
            {**_common(ask), "prompt": no_messages(prompt, "the completions endpoint"), **ask.extra}
        )

    def reader(self) -> Reader:
        """A reader for one stream."""
        return OpenAIReader()


@dataclass(frozen=True, slots=True)
class Chat:
    """OpenAI's `/v1/chat/completions`; takes text, which becomes one message of the user, and messages."""

    path: str = "/v1/chat/completions"
    ready_path: str = "/v1/models"
    end_mark: bool = True

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if any(isinstance(message, int) for message in messages):
            only_text(prompt, "the chat endpoint")
        return msgspec.json.encode({**_common(ask), "messages": messages, **ask.extra})

    def reader(self) -> Reader:
        """A reader for one stream."""
        return OpenAIReader()


@dataclass(frozen=True, slots=True)
class DeepSpeedMii:
    """DeepSpeed-MII's server with OpenAI's completions (`mii.entrypoints.openai_api_server`).

    It takes text only, streams no usage (so there is no TPOT), knows no `ignore_eos` but `min_tokens`, and always samples: `top_k` 1
    is how it is made greedy.
    """

    path: str = "/v1/completions"
    ready_path: str = "/health"
    end_mark: bool = True

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        greedy = ask.sampling.temperature == 0
        body: dict[str, Any] = {
            "model": ask.model,
            "prompt": only_text(prompt, "DeepSpeed-MII"),
            "max_tokens": ask.output_tokens,
            "stream": True,
            **ask.sampling.chosen(),
            **({"top_k": 1} if greedy else {"temperature": ask.sampling.temperature}),
            **({"min_tokens": ask.output_tokens} if ask.ignore_eos else {}),
        }
        return msgspec.json.encode({**body, **ask.extra})

    def reader(self) -> Reader:
        """A reader for one stream."""
        return OpenAIReader()


def _common(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "max_tokens": ask.output_tokens,
        "temperature": ask.sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **ask.sampling.chosen(),
    }
    # Both are vLLM's; a server that does not know them may refuse them, so they are sent only when wanted.
    if ask.ignore_eos:
        body["ignore_eos"] = True
    if ask.return_token_ids:
        body["return_token_ids"] = True
    return body


def _delta(data: str) -> Delta:
    chunk = _decoder.decode(data)
    usage = chunk.usage or _Usage()
    if chunk.error is not None:
        return Delta(error=error_text(chunk.error))
    if not chunk.choices:
        return Delta(prompt_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
    choice = chunk.choices[0]
    if choice.finish_reason == ABORTED:
        return Delta(error=GIVEN_UP)
    text, output, only_role = _output(choice)
    ids = tuple(choice.token_ids or ())
    blank = not text and not output and not ids and not only_role and _has_field(choice)
    last = bool(choice.finish_reason)  # SGLang sends an empty one with every chunk but the last
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
