"""The text of an answer's first token, without decoding the whole prompt.

vLLM gives a request's whole prompt to `tokenizers.decoders.DecodeStream`, which decodes it twice when the first token comes, in the
event loop of the API server. No stream of that server goes on meanwhile: about 1 ms for 4,096 tokens, 8 ms for 32,768. A token's text
depends on the few tokens before it alone, so the end of the prompt is enough.

vLLM loads `shorten` as a general plugin in each of its processes; `VLLM_PLUGINS` chooses among plugins. It finds plugins by the metadata of
installed packages. This package may lie beside vLLM as plain source, so `plugins` has such metadata, and `PYTHONPATH` leads there.
"""

import importlib
from pathlib import Path
from typing import Any, Final

PLUGINS: Final = Path(__file__).with_name("plugins")

# A shorter prompt is given whole.
WHOLE: Final = 64
# As many tokens of a longer one, at least; up to MOST if these begin or end within a character.
LEAST: Final = 16
MOST: Final = 32
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"


def tail(tokenizer: Any, ids: list[int], skip_special_tokens: bool) -> list[int]:
    """The end of a prompt after which tokens have the same text as after all of it; all of it if no such end is found.

    Its own text must be whole characters, and not empty: decoders strip the space before the first token that has a text.
    """
    if len(ids) <= WHOLE:
        return ids
    for count in range(LEAST, MOST + 1):
        end = ids[-count:]
        text = tokenizer.decode(end, skip_special_tokens=skip_special_tokens)
        if text and _BROKEN not in text:
            return end
    return ids


class TailStream:
    """A `DecodeStream` that chooses the end of its prompt when its tokenizer is known, at the first step."""

    __slots__ = ("_ids", "_kind", "_skip_special_tokens", "step")

    def __init__(self, kind: Any, ids: list[int], skip_special_tokens: bool) -> None:
        self._kind, self._ids, self._skip_special_tokens = kind, ids, skip_special_tokens
        self.step = self._first_step

    def _first_step(self, tokenizer: Any, token: int | list[int]) -> str | None:
        ids = tail(tokenizer, self._ids, self._skip_special_tokens)
        stream = self._kind(ids=ids, skip_special_tokens=self._skip_special_tokens)
        self._ids = []
        self.step = stream.step  # the steps after this one cost what they cost without us
        return stream.step(tokenizer, token)  # type: ignore[no-any-return]


def shorten() -> None:
    """Let this process's `DecodeStream`s read the ends of prompts; calling it again changes nothing."""
    decoders: Any = importlib.import_module("tokenizers.decoders")  # in vLLM's images; nothing else here needs it
    kind = decoders.DecodeStream
    # Another backend, such as fastokens, brings a stream of its own, about which we know nothing. Ours is a function.
    if not isinstance(kind, type) or not kind.__module__.startswith("tokenizers"):
        return

    def stream(ids: list[int] | None = None, skip_special_tokens: bool = False) -> Any:
        if ids is None or len(ids) <= WHOLE:
            return kind(ids=ids, skip_special_tokens=skip_special_tokens)
        return TailStream(kind, ids, skip_special_tokens)

    decoders.DecodeStream = stream
