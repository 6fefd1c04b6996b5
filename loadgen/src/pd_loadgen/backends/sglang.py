"""SGLang's own `/generate`; no I/O.

Each event has the whole text so far (only the new part with the server's `--incremental-streaming-output`), and in `meta_info` the
number of tokens so far: the tokens of a chunk are the growth of that number. The stream ends with `[DONE]`.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from pd_loadgen.backends.base import Ask, Delta, Reader, error_text, no_messages
from pd_loadgen.datasets import Prompt


class _Finish(msgspec.Struct):
    type: str


class _Meta(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: _Finish | None = None


class _Event(msgspec.Struct):
    text: str = ""
    meta_info: _Meta | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class SglangReader:
    """Reads one stream; knows what has been said."""

    def __init__(self) -> None:
        """Nothing has been said."""
        self._text, self._tokens = "", 0

    def read(self, data: str) -> Delta:
        """Read one event's data."""
        event = _decoder.decode(data)
        if event.error is not None:
            return Delta(error=error_text(event.error))
        if event.meta_info is None:
            msg = "an event without meta_info"
            raise msgspec.ValidationError(msg)
        meta = event.meta_info
        new = event.text.removeprefix(self._text)
        self._text = event.text if event.text.startswith(self._text) else self._text + event.text
        counted = self._tokens + bool(new) if meta.completion_tokens is None else meta.completion_tokens
        grown, self._tokens = max(0, counted - self._tokens), max(counted, self._tokens)
        return Delta(
            tokens=grown,
            text=new,
            prompt_tokens=meta.prompt_tokens,
            output_tokens=meta.completion_tokens,
            finish_reason=meta.finish_reason.type if meta.finish_reason else None,
        )


@dataclass(frozen=True, slots=True)
class Sglang:
    """Takes token ids and text; the model is the server's only one and is not named."""

    path: str = "/generate"
    ready_path: str = "/health"
    end_mark: bool = True

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
        """A reader for one stream."""
        return SglangReader()
