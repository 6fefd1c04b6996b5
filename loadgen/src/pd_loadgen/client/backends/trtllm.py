"""TensorRT-LLM behind Triton: `generate_stream` of the ensemble; no I/O.

With `accumulate_tokens` off it sends one event per token, whose text may be empty. There is no usage and no end mark: an answer is
complete if its HTTP body ended properly. An empty token looks like a keep-alive, so neither counts.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from pd_loadgen.client.backends.base import Ask, Delta, Reader, error_text, only_text
from pd_loadgen.prompts.datasets import Prompt


class _Event(msgspec.Struct):
    text_output: str | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class TrtLlmReader:
    """Reads one stream; each event stands for itself."""

    def read(self, data: str) -> Delta:
        event = _decoder.decode(data)
        if event.error is not None:
            return Delta(error=error_text(event.error))
        if event.text_output is None:
            msg = "an event without text_output"
            raise msgspec.ValidationError(msg)
        return Delta(tokens=int(bool(event.text_output)), blank=not event.text_output, text=event.text_output)


@dataclass(frozen=True, slots=True)
class TrtLlm:
    """Takes text only; the model is named in the path. `min_length` makes it ignore the end of text."""

    path: str = "/v2/models/ensemble/generate_stream"
    ready_path: str = "/v2/health/ready"
    end_mark: bool = False
    closes: bool = False

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        body: dict[str, Any] = {
            "text_input": only_text(prompt, "TensorRT-LLM"),
            "max_tokens": ask.output_tokens,
            "temperature": ask.sampling.temperature,
            "stream": True,
            "accumulate_tokens": False,
            **ask.sampling.chosen(),
            **({"min_length": ask.output_tokens} if ask.ignore_eos else {}),
        }
        return msgspec.json.encode({**body, **ask.extra})

    def reader(self) -> Reader:
        return TrtLlmReader()
