"""Prompts from files: JSON lines of one's own, and ShareGPT's conversations. A broken entry is reported with file and line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from pd_loadgen.prompts.datasets import Dataset, Prompt
from pd_loadgen.prompts.token_estimate import estimated_tokens

T = TypeVar("T")

# What `vllm bench serve` keeps of ShareGPT: tokens of prompt, answer and both.
LEAST_TOKENS: Final = 4
MOST_PROMPT_TOKENS: Final = 1024
MOST_TOKENS: Final = 2048
_ASKS: Final = frozenset({"human", "user"})


class CorpusError(ValueError):
    """A file cannot be used; the message is `file:line: what is wrong`."""


class Entry(msgspec.Struct, frozen=True):
    """One prompt of a file; `output_tokens` is None where the file does not say."""

    prompt: Prompt
    input_tokens: int | None
    output_tokens: int | None


class _Line(msgspec.Struct):
    prompt: list[Annotated[int, msgspec.Meta(ge=0)]] | str | None = None
    messages: list[dict[str, Any]] | None = None
    output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Speech(msgspec.Struct):
    """What somebody says in a conversation, with ShareGPT's names."""

    speaker: str = msgspec.field(name="from")
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[Speech] = []


def read(dataset: Dataset, path: Path) -> list[Entry]:
    """All usable prompts of a file, in its order.

    Raises:
        CorpusError: if the file cannot be read, has a broken entry, or nothing to send.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise CorpusError(msg) from error
    entries = _sharegpt(path, data) if dataset is Dataset.SHAREGPT else _jsonl(path, data)
    if not entries:
        msg = f"{path}: has no prompt that can be sent"
        raise CorpusError(msg)
    return entries


def _jsonl(path: Path, data: bytes) -> list[Entry]:
    return [
        _entry(path, number, _decoded(path, number, line, _Line))
        for number, line in enumerate(data.split(b"\n"), 1)
        if line.strip()
    ]


def _entry(path: Path, number: int, line: _Line) -> Entry:
    prompt = line.prompt if line.messages is None else line.messages
    if not prompt or (line.prompt is not None and line.messages is not None):
        msg = f'{path}:{number}: needs either "prompt" (a text or token ids) or "messages", and not empty'
        raise CorpusError(msg)
    known = len(line.prompt) if isinstance(line.prompt, list) else None
    return Entry(prompt, known, line.output_tokens)


def _sharegpt(path: Path, data: bytes) -> list[Entry]:
    raw = _decoded(path, 1, data, list[msgspec.Raw])
    entries: list[Entry] = []
    end = 0
    for one in raw:
        text = bytes(one)
        start = data.index(text, end)
        end = start + len(text)
        try:
            conversation = msgspec.json.decode(text, type=_Conversation)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            line = data.count(b"\n", 0, start) + 1
            msg = f"{path}:{line}: {error}"
            raise CorpusError(msg) from error
        if (entry := first_exchange(conversation.conversations)) is not None:
            entries.append(entry)
    return entries


def first_exchange(said: Sequence[Speech]) -> Entry | None:
    """A conversation's first question, with the length of its answer; None if it has none or vLLM would leave it out."""
    if len(said) < 2 or said[0].speaker not in _ASKS:
        return None
    question, answer = said[0].value, said[1].value
    asked, answered = estimated_tokens(question), estimated_tokens(answer)
    fits = min(asked, answered) >= LEAST_TOKENS and asked <= MOST_PROMPT_TOKENS and asked + answered <= MOST_TOKENS
    return Entry(question, None, answered) if fits else None


def _decoded(path: Path, number: int, data: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{path}:{number}: {error}"
        raise CorpusError(msg) from error
