"""Text Generation Inference's `/generate_stream`; no I/O.

One event per token. The last one also has `generated_text` and, with `details`, the count; there is no `[DONE]`. The end-of-text token
comes as a special token: it was generated, so it counts.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from pd_loadgen.client.backends.base import Ask, Delta, Reader, error_text, only_text
from pd_loadgen.prompts.datasets import Prompt


class _Token(msgspec.Struct):
    id: int
    text: str = ""
    special: bool = False


class _Details(msgspec.Struct):
    finish_reason: str | None = None
    generated_tokens: int | None = None
    input_length: int | None = None


class _Event(msgspec.Struct):
    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class TgiReader:
    """Reads one stream; each event stands for itself."""

    def read(self, data: str) -> Delta:
        event = _decoder.decode(data)
        if event.error is not None:
            return Delta(error=error_text(event.error))
        if event.token is None:
            msg = "an event without a token"
            raise msgspec.ValidationError(msg)
        details = event.details or _Details()
        return Delta(
            tokens=1,
            exact=True,
            text="" if event.token.special else event.token.text,
            token_ids=(event.token.id,),
            prompt_tokens=details.input_length,
            output_tokens=details.generated_tokens,
            finish_reason=details.finish_reason,
            last=event.generated_text is not None,
        )


@dataclass(frozen=True, slots=True)
class Tgi:
    """Takes text only. It refuses a temperature of 0: `do_sample` off is greedy. `ignore_eos_token` exists for benchmarks."""

    path: str = "/generate_stream"
    ready_path: str = "/health"
    end_mark: bool = True
    closes: bool = False

    def body(self, prompt: Prompt, ask: Ask) -> bytes:
        """The JSON of one streamed request."""
        greedy = ask.sampling.temperature == 0
        parameters: dict[str, Any] = {
            "max_new_tokens": ask.output_tokens,
            "details": True,
            "do_sample": not greedy,
            **({} if greedy else {"temperature": ask.sampling.temperature, **ask.sampling.chosen()}),
            **({"ignore_eos_token": True} if ask.ignore_eos else {}),
        }
        return msgspec.json.encode({"inputs": only_text(prompt, "TGI"), "parameters": parameters, **ask.extra})

    def reader(self) -> Reader:
        return TgiReader()
