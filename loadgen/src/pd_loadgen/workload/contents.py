"""What each request of a run contains: its prompt, and how many tokens it asks for. Drawn before the start, from seed and options alone."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts import corpora, datasets, huggingface, media, tokenizer
from pd_loadgen.prompts.corpora import Corpus
from pd_loadgen.prompts.datasets import Dataset, Made, Prompt
from pd_loadgen.prompts.traces import Arrived
from pd_loadgen.workload.options import Options

EXCERPT: Final = "Excerpt"


@dataclass(frozen=True, slots=True)
class Content:
    """One request; `input_tokens` is None where only the server will know."""

    prompt: Prompt
    input_tokens: int | None
    output_tokens: int


def draw(
    options: Options, count: int, trace: Sequence[Arrived] = (), *, warmup: bool = False, corpus: Corpus | None = None
) -> list[Content]:
    """The contents of `count` requests, or of a trace's; warm-ups have their own prompts if prompts are generated.

    `corpus` holds the prompts of a data set's file, as `read` gives it.
    """
    if corpus is not None:
        return _from_corpus(options, count, trace, corpus)
    kind = "Warm-up" if warmup else EXCERPT
    if trace and not warmup:
        return [_as_recorded(options, f"{kind} {index}", arrived) for index, arrived in enumerate(trace)]
    if options.turns > 1 and not warmup:
        return _conversations(options, count)
    return [_made(options, kind, index) for index in range(count)]


def read(options: Options, model: str, count: int) -> Corpus | None:
    """The first prompts of the data set's file, for `count` requests; None if prompts are made.

    Raises:
        FileError: if the file, or the tokenizer that was named, cannot be used.
    """
    if options.dataset is Dataset.JSONL:
        return corpora.read(options.dataset, Path(options.dataset_path), tokenizer.find(tokenizer.ESTIMATE, ""), count)
    if options.dataset is Dataset.SHAREGPT:
        counter = tokenizer.find(options.tokenizer, model)
        return corpora.read(options.dataset, Path(options.dataset_path), counter, count)
    if options.dataset is Dataset.HUGGINGFACE:
        counter = tokenizer.find(options.tokenizer, model)
        return huggingface.read(options.dataset_path, options.dataset_split, options.dataset_column, count, counter)
    return None


def _from_corpus(options: Options, count: int, trace: Sequence[Arrived], corpus: Corpus) -> list[Content]:
    contents = []
    for index in range(count):
        entry = corpus.entries[index % len(corpus.entries)]
        outputs = trace[index].output_tokens if trace else entry.output_tokens or options.output_tokens
        contents.append(Content(entry.prompt, entry.input_tokens, outputs))
    return contents


def threads(options: Options, count: int) -> list[list[Made]]:
    """The questions of each of `count` conversations whose answers come from the server."""
    return [
        [_prompt(options, f"Conversation {number} turn {turn}", options.input_tokens) for turn in range(options.turns)]
        for number in range(count)
    ]


def dialogue(options: Options, asked: Sequence[Made], answers: Sequence[str]) -> Prompt:
    """The conversation so far, in the endpoint's form; it ends with a question."""
    said = [str(one) for pair in zip_longest(asked, answers) for one in pair if one is not None]
    if options.endpoint is not Endpoint.CHAT:
        return "\n\n".join(said)
    return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(said)]


def with_media(options: Options, name: str, prompt: Prompt) -> Prompt:
    """The prompt as a message that also shows pictures and plays sounds, if some are wanted."""
    if not (options.images or options.audios) or not isinstance(prompt, str):
        return prompt
    more = media.parts(
        options.seed,
        name,
        images=options.images,
        size=media.parse_size(options.image_size),
        audios=options.audios,
        seconds=options.audio_seconds,
    )
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, *more]}]


def made_lengths(options: Options, index: int, kind: str = EXCERPT) -> tuple[int, int]:
    """Tokens of a made prompt without its shared prefix, and of its answer."""
    rng = random.Random(f"lengths:{options.seed}:{kind} {index}")
    inputs = _length(rng, options.input_tokens, options.range_ratio)
    return inputs, _length(rng, options.output_tokens, options.range_ratio)


def _made(options: Options, kind: str, index: int) -> Content:
    inputs, outputs = made_lengths(options, index, kind)
    prompt = _prompt(options, f"{kind} {index}", inputs)
    if options.prefix_tokens:
        prefix = _prompt(options, f"{kind} prefix {index % options.prefixes}", options.prefix_tokens)
        prompt = _joined([prefix, prompt])
    return Content(with_media(options, f"{kind} {index}", prompt), inputs + options.prefix_tokens, outputs)


def _length(rng: random.Random, mean: int, ratio: float) -> int:
    """Uniform between mean (1 − ratio) and mean (1 + ratio), at least 1."""
    if ratio == 0:
        return mean
    low, high = max(1, math.floor(mean * (1 - ratio))), math.ceil(mean * (1 + ratio))
    return low + int(rng.random() * (high - low + 1))


def conversations(options: Options, count: int) -> int:
    """How many conversations `count` requests are the turns of."""
    return math.ceil(count / options.turns)


def _conversations(options: Options, count: int) -> list[Content]:
    """Turn t of every conversation, then turn t + 1 of every one: a turn's prompt begins with the one before it.

    The answers between are generated too, so prompts do not depend on the server and are the same for every target.
    """
    width = conversations(options, count)
    said: list[list[Made]] = [[] for _ in range(width)]
    contents = []
    for index in range(count):
        turn, number = divmod(index, width)
        name = f"Conversation {number} turn {turn}"
        said[number].append(_prompt(options, name, options.input_tokens))
        tokens = options.input_tokens * (turn + 1) + options.output_tokens * turn
        contents.append(Content(_joined(said[number]), tokens, options.output_tokens))
        said[number].append(_prompt(options, f"{name} answer", options.output_tokens))
    return contents


def _as_recorded(options: Options, name: str, arrived: Arrived) -> Content:
    """A prompt of the recorded length, made of the recorded blocks if the trace names them."""
    if not arrived.blocks or options.dataset is Dataset.TEXT:
        return Content(_prompt(options, name, arrived.input_tokens), arrived.input_tokens, arrived.output_tokens)
    blocks = [_prompt(options, f"Block {block}", arrived.block_tokens) for block in arrived.blocks]
    return Content(_joined(blocks)[: arrived.input_tokens], arrived.input_tokens, arrived.output_tokens)


def _prompt(options: Options, name: str, tokens: int) -> Made:
    return datasets.prompt(
        options.dataset, seed=options.seed, name=name, input_tokens=tokens, vocab_size=options.vocab_size
    )


def _joined(parts: Sequence[Made]) -> Made:
    if all(isinstance(part, list) for part in parts):
        return [token for part in parts for token in part if isinstance(token, int)]
    return "\n\n".join(part for part in parts if isinstance(part, str))
