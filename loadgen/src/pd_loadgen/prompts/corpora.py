"""Prompts from files: a user's own JSON lines, and ShareGPT's conversations. A broken entry is reported with file and line."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from pd_contracts.libraries import plain
from pd_contracts.sentences import Clause
from pd_loadgen.prompts.datasets import Dataset, Prompt
from pd_loadgen.prompts.files import FileError, text_of, values_of
from pd_loadgen.prompts.tokenizer import TokenCounter

# What `vllm bench serve` keeps of ShareGPT: tokens of prompt, answer and both.
LEAST_TOKENS: Final = 4
MOST_PROMPT_TOKENS: Final = 1024
MOST_TOKENS: Final = 2048
_ASKS: Final = frozenset({"human", "user"})
_INTRODUCES: Final = frozenset({"system", "developer"})
# Field names of data sets: the conversation, the speaker of a turn, and the text of a turn.
CONVERSATIONS: Final = ("conversations", "conversation", "messages", "items")
_SPEAKERS: Final = ("from", "role", "speaker")
_SAYINGS: Final = ("value", "content", "text")
_PAIRS: Final = (("human", "assistant"), ("user", "assistant"), ("human", "gpt"), ("prompt", "response"))
# Names of a prompt, and of how many tokens its answer should have, in files for vLLM, SGLang, GenAI-Perf and others.
_PROMPTS: Final = ("prompt", "text", "text_input", "input")
_LENGTHS: Final = (
    "output_tokens", "output_len", "output_length", "expected_output_len", "max_tokens", "max_completion_tokens", "max_new_tokens",
)  # fmt: skip
_Count = Annotated[int, msgspec.Meta(ge=1)]


class Entry(msgspec.Struct, frozen=True):
    """One prompt of a file; `output_tokens` is None where the file does not say."""

    prompt: Prompt
    input_tokens: int | None
    output_tokens: int | None


class Speech(msgspec.Struct):
    """What one speaker says in a conversation."""

    speaker: str
    value: str


@dataclass
class Corpus:
    """Prompts that can be sent, and how many were left out for which reason."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    lengths: str = ""

    def take(self, found: Entry | str) -> None:
        """Keep a prompt, or count the reason why it is left out."""
        if isinstance(found, Entry):
            self.entries.append(found)
        else:
            self.left_out[found] += 1

    @property
    def notes(self) -> list[str]:
        """What a reader of the run should know."""
        notes = []
        if self.left_out:
            looked = len(self.entries) + self.left_out.total()
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
            notes.append(f"{self.name}: {self.left_out.total()} of {looked} conversations were left out: {reasons}")
        return [*notes, *([f"{self.name}: lengths of answers by {self.lengths}"] if self.lengths else [])]


def read(dataset: Dataset, path: Path, counter: TokenCounter, count: int) -> Corpus:
    """The usable prompts of a file, in its order; of ShareGPT the first `count`, because counting tokens takes time.

    Raises:
        FileError: if the file cannot be read, has a broken entry, or nothing to send.
    """
    places = [(f"{path}:{number}", value) for number, value in values_of(path, text_of(path))]
    if dataset is not Dataset.SHAREGPT:
        corpus = Corpus(f"dataset {dataset}", [_entry(place, value) for place, value in places])
    else:
        corpus = Corpus(f"dataset {dataset}", lengths=counter.source)
        for place, value in places:
            corpus.take(_conversation(place, value, counter))
            if len(corpus.entries) >= count:
                break
    if not corpus.entries:
        if why := "; ".join(f"{n} {reason}" for reason, n in corpus.left_out.items()):
            raise FileError("{path}: has no prompt that can be sent ({reasons})", path=path, reasons=why)
        raise FileError("{path}: has no prompt that can be sent", path=path)
    return corpus


def _entry(place: str, value: Any) -> Entry:
    """One line of a file of one's own: a text, or an object with a prompt or messages."""
    if isinstance(value, str) and value:
        return Entry(value, None, None)
    line = value if isinstance(value, Mapping) else {}
    told = [name for name in (*_PROMPTS, "messages") if line.get(name)]
    if len(told) != 1:
        needs = Clause('{place}: needs either "prompt" (a text or token ids) or "messages", and not empty', place=place)
        if any(name in line for name in CONVERSATIONS[:2]):
            raise FileError("{finding}; conversations are read by dataset sharegpt", finding=needs)
        raise FileError(needs.message, **needs.holes)
    kind: Any = list[dict[str, Any]] if told[0] == "messages" else list[Annotated[int, msgspec.Meta(ge=0)]] | str
    prompt = _converted(place, told[0], line[told[0]], kind)
    known = len(prompt) if isinstance(prompt, list) and told[0] != "messages" else None
    return Entry(prompt, known, _length(place, line))


def _length(place: str, line: Mapping[str, Any]) -> int | None:
    name = next((name for name in _LENGTHS if line.get(name) is not None), None)
    return None if name is None else int(_converted(place, name, line[name], _Count))


def _converted(place: str, name: str, value: Any, type_: Any) -> Any:
    try:
        return msgspec.convert(value, type_, strict=False)
    except msgspec.ValidationError as error:
        raise FileError("{place}: {name}: {reason}", place=place, name=name, reason=plain(error)) from error


def _conversation(place: str, value: Any, counter: TokenCounter) -> Entry | str:
    if isinstance(value, list):
        value = {CONVERSATIONS[0]: value}
    if not isinstance(value, Mapping) or not any(name in value for name in CONVERSATIONS):
        raise FileError(
            '{place}: is not a conversation: needs "conversations", a list of speakers and texts', place=place
        )
    turns = next((value[name] for name in CONVERSATIONS if value.get(name)), None)
    try:
        said = list(speeches(turns)) if turns is not None else []
    except (ValueError, TypeError) as error:
        raise FileError("{place}: {reason}", place=place, reason=error) from error
    return first_exchange(said, counter)


def speeches(turns: Any) -> Iterator[Speech]:
    """Who says what, in the forms in which conversations are published.

    Raises:
        ValueError, TypeError: for what is none of them.
    """
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, Mapping):
            msg = f"a turn is {turn!r:.40}, not an object"
            raise TypeError(msg)
        pair = next((names for names in _PAIRS if all(name in turn for name in names)), None)
        if pair is not None:
            yield from (Speech(name, _text(turn[name])) for name in pair)
            continue
        speaker = next((turn[name] for name in _SPEAKERS if turn.get(name)), "")
        saying = next((name for name in _SAYINGS if name in turn), None)
        if saying is None:
            msg = f"a turn has none of {', '.join(_SAYINGS)}"
            raise ValueError(msg)
        yield Speech(str(speaker), _text(turn[saying]))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def first_exchange(said: Sequence[Speech], counter: TokenCounter) -> Entry | str:
    """A conversation's first question, with the length of its answer; a reason if it has none or vLLM would leave it out."""
    spoken = [speech for speech in said if speech.speaker.lower() not in _INTRODUCES]
    if len(spoken) < 2 or spoken[0].speaker.lower() not in _ASKS or not (spoken[0].value and spoken[1].value):
        return "without a first question and its answer"
    question = spoken[0].value
    asked, answered = counter.count(question), counter.count(spoken[1].value)
    if min(asked, answered) < LEAST_TOKENS:
        return f"shorter than {LEAST_TOKENS} tokens"
    if asked > MOST_PROMPT_TOKENS or asked + answered > MOST_TOKENS:
        return f"longer than {MOST_PROMPT_TOKENS} tokens of question or {MOST_TOKENS} of both"
    return Entry(question, None, answered)
