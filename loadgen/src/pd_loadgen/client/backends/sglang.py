"""SGLang's own `/generate`; no I/O.

Each event has the whole text so far (only the new part with the server's `--incremental-streaming-output`), and in `meta_info` the
number of tokens so far: the tokens of a chunk are the growth of that number. The stream ends with `[DONE]`, also when the server
aborted the request; the finish reason is then `abort`. Before 0.2 the finish reason was a plain text.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from pd_loadgen.client.backends.base import Ask, Delta, Reader, error_text, given_up, no_messages
from pd_loadgen.prompts.datasets import Prompt


class _Finish(msgspec.Struct):
    type: str
    message: str | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: _Finish | str | None = None


class _Event(msgspec.Struct):
    text: str = ""
    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class SglangReader:
    """Reads one stream; remembers the text and the token count so far."""

    def __init__(self) -> None:
        self._text, self._tokens = "", 0

    def read(self, data: str) -> Delta:
        event = _decoder.decode(data)
        if event.error is not None:
            return Delta(error=error_text(event.error))
        if event.meta_info is None:
            msg = "an event without meta_info"
            raise msgspec.ValidationError(msg)
        meta = event.meta_info
        finish = _Finish(meta.finish_reason) if isinstance(meta.finish_reason, str) else meta.finish_reason
        if finish is not None and (problem := given_up(finish.type)):
            return Delta(error=finish.message or problem)
        new = self._new_text(event, meta)
        counted = self._tokens + bool(new) if meta.completion_tokens is None else meta.completion_tokens
        grown, self._tokens = max(0, counted - self._tokens), max(counted, self._tokens)
        return Delta(
            tokens=grown,
            exact=meta.completion_tokens is not None,
            text=new,
            prompt_tokens=meta.prompt_tokens,
            output_tokens=meta.completion_tokens,
            finish_reason=finish.type if finish else None,
            closing=finish is not None,
        )

    def _new_text(self, event: _Event, meta: _Meta) -> str:
        """What an event adds; where it has fewer ids than there are tokens so far, all its text is new."""
        parts = event.output_ids is not None and len(event.output_ids) < (meta.completion_tokens or 0)
        if parts or not event.text.startswith(self._text):
            self._text += event.text
            return event.text
        new, self._text = event.text[len(self._text) :], event.text
        return new


@dataclass(frozen=True, slots=True)
class Sglang:
    """Takes token ids and text; the model is the server's only one and is not named."""

    path: str = "/generate"
    ready_path: str = "/health"
    end_mark: bool = True
    closes: bool = True

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        asked = no_messages(prompt, "SGLang's /generate")
        sampling: dict[str, Any] = {
            "temperature": ask.sampling.temperature,
            "max_new_tokens": ask.output_tokens,
            **ask.sampling.chosen(),
            **({"ignore_eos": True} if ask.ignore_eos else {}),
        }
        key = "text" if isinstance(prompt, str) else "input_ids"
        return msgspec.json.encode({key: asked, "sampling_params": sampling, "stream": True, **ask.extra})

    def reader(self) -> Reader:
        return SglangReader()
