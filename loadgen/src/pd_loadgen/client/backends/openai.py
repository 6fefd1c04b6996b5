"""OpenAI's completions and chat, as vLLM, SGLang, DeepSpeed-MII and many others serve them; no I/O.

A chunk is a token chunk if it carries generated output. Servers also send other chunks: the role of a chat answer, usage, a
finish reason alone, keep-alive chunks. And vLLM sends chunks with empty text for tokens whose bytes do not complete a character yet. Which of
the chunks without text were tokens is known once the usage has come (`token_chunks`).
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pd_loadgen.client.backends.base import Ask, Delta, Reader, error_text, given_up, lenient, no_messages, only_text
from pd_loadgen.prompts.datasets import Prompt


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: Any = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    error: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_NO_USAGE: Final = _Usage()
_decoder = msgspec.json.Decoder(_Chunk)
# Members under which FastAPI, vLLM and other servers report an error, in an event that is not a chunk.
_TELL_ERRORS: Final = ("error", "errors", "detail", "message", "msg", "error_msg", "error_message", "err_msg")


class OpenAIReader:
    """Reads chunks of both APIs; remembers the server's token count so far, if each chunk carries it."""

    def __init__(self) -> None:
        self._counted = 0

    def read(self, data: str) -> Delta:
        try:
            chunk = _decoder.decode(data)
        except msgspec.DecodeError:  # counts as 8.0 or "8", NaN among the log probabilities, or no chunk at all
            chunk = msgspec.convert(lenient(data), _Chunk, strict=False)
        if chunk.error is not None:
            return Delta(error=error_text(chunk.error))
        if chunk.choices:
            return self._delta(chunk.choices[0], chunk.usage or _NO_USAGE)
        if chunk.usage is not None:
            used = chunk.usage
            return Delta(prompt_tokens=used.prompt_tokens, output_tokens=used.completion_tokens, closing=True)
        return Delta() if chunk.choices is not None else _stranger(data)

    def _delta(self, choice: _Choice, usage: _Usage) -> Delta:
        if choice.error is not None or choice.finish_reason:
            error = given_up(choice.finish_reason) if choice.error is None else error_text(choice.error)
            if error:
                return Delta(error=error)
        text, output = _output(choice)
        ids = tuple(choice.token_ids) if choice.token_ids else ()
        grown = 0
        # what a server counts with the chunk of the role comes with the next one
        if usage.completion_tokens and (output or not _only_role(choice)):
            grown = max(0, usage.completion_tokens - self._counted)
            self._counted += grown
        tokens = len(ids) or grown or int(output)
        return Delta(
            tokens=tokens,
            exact=bool(ids or grown),
            # if each chunk carries the server's count, a chunk that adds nothing to it is not a token
            blank=not tokens and usage.completion_tokens is None and _may_be_token(choice),
            text=text,
            token_ids=ids,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            finish_reason=choice.finish_reason,
            closing=bool(choice.finish_reason),  # SGLang sends an empty one with every chunk but the last
        )


@dataclass(frozen=True, slots=True)
class Completions:
    """OpenAI's `/v1/completions`, with vLLM's options where asked for; takes token ids and text."""

    path: str = "/v1/completions"
    ready_path: str = "/v1/models"
    end_mark: bool = True
    closes: bool = True

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        return msgspec.json.encode(
            {**_common(ask), "prompt": no_messages(prompt, "the completions endpoint"), **ask.extra}
        )

    def reader(self) -> Reader:
        return OpenAIReader()


@dataclass(frozen=True, slots=True)
class Chat:
    """OpenAI's `/v1/chat/completions`; takes text, which becomes one message of the user, and messages."""

    path: str = "/v1/chat/completions"
    ready_path: str = "/v1/models"
    end_mark: bool = True
    closes: bool = True

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if any(isinstance(message, int) for message in messages):
            only_text(prompt, "the chat endpoint")
        return msgspec.json.encode({**_common(ask), "messages": messages, **ask.extra})

    def reader(self) -> Reader:
        return OpenAIReader()


@dataclass(frozen=True, slots=True)
class DeepSpeedMii:
    """DeepSpeed-MII's server with OpenAI's completions (`mii.entrypoints.openai_api_server`).

    It takes text only, streams no usage (so there is no TPOT), and has `min_tokens` instead of `ignore_eos`. It always samples;
    `top_k` 1 makes it greedy.
    """

    path: str = "/v1/completions"
    ready_path: str = "/health"
    end_mark: bool = True
    closes: bool = False

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


def _stranger(data: str) -> Delta:
    """An event without choices and usage: an error in the server's own format, or an event of another kind, like a ping."""
    body = msgspec.convert(lenient(data), dict[str, Any])
    told = next((body[name] for name in _TELL_ERRORS if body.get(name)), None)
    return Delta() if told is None else Delta(error=error_text(told))


def _output(choice: _Choice) -> tuple[str, bool]:
    """Generated text, and whether there is output at all: a tool call is output without text."""
    message = choice.delta
    if message is None:
        return choice.text or "", bool(choice.text)
    text = (message.reasoning or message.reasoning_content or "") + (message.refusal or "")
    if message.content:
        text += message.content if isinstance(message.content, str) else _text_of(message.content)
    return text, bool(text or message.tool_calls or message.function_call)


def _text_of(content: Any) -> str:
    """A content's text; Mistral's servers send a list of parts, which hold lists again."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return "".join(_text_of(content[name]) for name in ("text", "thinking") if content.get(name))
    return "".join(map(_text_of, content)) if isinstance(content, list) else ""


def _may_be_token(choice: _Choice) -> bool:
    """True if a chunk without text has a text field and does not just name the role."""
    if choice.delta is None:
        return choice.text is not None
    return choice.delta.content is not None and not _only_role(choice)


def _only_role(choice: _Choice) -> bool:
    """True if a chunk without text carries nothing but the role."""
    return choice.delta is not None and choice.delta.role is not None and not choice.finish_reason
