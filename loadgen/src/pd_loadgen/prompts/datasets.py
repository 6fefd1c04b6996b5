"""Generated prompts. They depend on (seed, name) alone, so both topologies get the same ones in the same order.

Random draws use `Random.random()` only: it is the one method whose sequence Python promises to keep.
"""

import math
import random
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

# The lowest ids are often special tokens (end of text, padding).
FIRST_TOKEN_ID = 10
# No published model has 300,000 tokens; a longer list of ids is a mistake that would fill the memory.
MOST_TOKEN_IDS = 2_000_000
# No published model reads more than 10 million tokens; a longer prompt or answer is a mistake that would fill the memory.
MOST_TOKENS_OF_A_TEXT = 20_000_000
# English text has about this many tokens per word in the vocabularies of current models.
TOKENS_A_WORD = 1.3

# Token ids, a text, or a chat's messages.
Prompt = list[int] | str | list[dict[str, Any]]
Made = list[int] | str


class Dataset(StrEnum):
    """Where prompts come from."""

    RANDOM = "random"
    TEXT = "text"
    JSONL = "jsonl"
    SHAREGPT = "sharegpt"
    HUGGINGFACE = "huggingface"


class Answers(StrEnum):
    """Where the answers between the turns of a conversation come from."""

    MADE = "made"
    SERVED = "served"


def prompt(dataset: Dataset, *, seed: int, name: str, input_tokens: int, vocab_size: int) -> Made:
    """One prompt of random ids or, for every other data set, of text. `name` makes it differ from all others of the run: its index, or the warm-up's name."""
    rng = random.Random(f"prompt:{seed}:{name}")
    if dataset is Dataset.RANDOM:
        return random_ids(rng, input_tokens, vocab_size)
    return text_prompt(rng, name, input_tokens)


def random_ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """Exactly `count` token ids from FIRST_TOKEN_ID up to, not including, `vocab_size`.

    An id outside a model's vocabulary kills a vLLM engine, hence the bound is the caller's and small by default.
    """
    ids, draw = _ids(vocab_size), rng.random
    span = len(ids)
    return [ids[int(draw() * span)] for _ in range(count)]


@cache
def _ids(vocab_size: int) -> tuple[int, ...]:
    """All prompts share these numbers: one object for each token would take four times the memory."""
    return tuple(range(FIRST_TOKEN_ID, vocab_size))


def text_prompt(rng: random.Random, name: str, input_tokens: int) -> str:
    """A short instruction and a window of the shipped text, of about `input_tokens` tokens.

    The instruction starts with `name`, so that no two prompts share their first block of tokens and a prefix cache finds nothing.
    """
    instruction = f"{name}: continue this passage in the same style.\n\n"
    words = text_words()
    count = max(1, round(input_tokens / TOKENS_A_WORD) - len(instruction.split()))
    start = int(rng.random() * len(words))
    turns = math.ceil((start + count) / len(words))
    return instruction + " ".join((words * turns)[start : start + count])


@cache
def text_words() -> tuple[str, ...]:
    """The words of the shipped text."""
    return tuple((files("pd_loadgen") / "data" / "text.txt").read_text("utf-8").split())
