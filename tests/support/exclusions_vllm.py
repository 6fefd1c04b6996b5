"""Requests that two engines would answer otherwise than one: each with the proxy's reason for having one engine write all of the answer."""

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from support.handoff import COMPLETIONS
from support.handoff_vllm import ways
from support.vllm_engines import Engine, call

Request: TypeAlias = tuple[str, dict[str, Any]]
# Of a case: its requests, until one shows the difference.
Case: TypeAlias = Callable[[Engine], Iterator[Request]]

_OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": _OBJECT}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _OBJECT}}


def _with(*, over: int = 3, ways_: tuple[int, ...] = (0, 1, 2), **fields: Any) -> Case:
    """These fields with prompts of several lengths, as ids, text and chat."""

    def requests(_: Engine) -> Iterator[Request]:
        for length in range(40, 40 + over):
            for number, (path, base) in enumerate(ways(length)):
                if number in ways_:
                    yield path, base | fields

    return requests


def _penalised(**fields: Any) -> Case:
    """Three tokens at choice; which of them were written before decides on the next."""

    def requests(engine: Engine) -> Iterator[Request]:
        letters = [call(engine, "/tokenize", prompt=letter)["tokens"][0] for letter in "abc"]
        yield from _with(logit_bias=dict.fromkeys(map(str, letters), 50), **fields)(engine)

    return requests


def _ids(salt: int) -> list[int]:
    generator = random.Random(salt)
    return [generator.randrange(10, 1000) for _ in range(40)]


def _bad_words(engine: Engine) -> Iterator[Request]:
    """Two tokens that must not follow each other: the two with which the answer would begin."""
    for salt in range(40):
        plain = {"prompt": _ids(salt), "max_tokens": 2, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        first = call(engine, COMPLETIONS, **plain)["choices"][0]["token_ids"]
        text = call(engine, "/detokenize", tokens=first)["prompt"]
        if text.strip() and call(engine, "/tokenize", prompt=text)["tokens"] == first:
            yield COMPLETIONS, {"prompt": _ids(salt), "bad_words": [text]}


def _stop_strings(engine: Engine) -> Iterator[Request]:
    """A stop string that begins in the answer's first token and ends in its second."""
    for salt in range(40):
        plain = {"prompt": _ids(salt), "max_tokens": 2, "temperature": 0, "ignore_eos": True, "logprobs": 0}
        one, two = call(engine, COMPLETIONS, **plain)["choices"][0]["logprobs"]["tokens"]
        if one and two and "\ufffd" not in one + two:
            yield COMPLETIONS, {"prompt": _ids(salt), "stop": [one[-1] + two[0]]}


def _half_a_character(engine: Engine) -> Iterator[Request]:
    """Two tokens at choice, each of which is half of an é."""
    halves = call(engine, "/tokenize", prompt="é", add_special_tokens=False)["tokens"]
    for salt in range(40):
        yield COMPLETIONS, {"prompt": _ids(salt), "allowed_token_ids": halves, "max_tokens": 8}


# By the reason. `echo`, beam search, `suffix` and `prompt_embeds` never reach a pair; reasoning needs a parser, and `vllm_xargs`, logits processors,
# `stream_interval`, `watermarking` and special tokens with spaces between them something that this engine does not have.
KEPT_TOGETHER: dict[str, list[Case]] = {
    "structured_output": [
        _with(structured_outputs={"regex": "[ab]{8}"}),
        _with(structured_outputs={"choice": ["abcabc", "defdef"]}),
        _with(response_format=_JSON, max_tokens=30),
    ],
    "penalties": [_penalised(presence_penalty=2), _penalised(frequency_penalty=2)],
    "several_sequences": [_with(n=2, temperature=1, seed=5, stream=False)],
    "truncation": [_with(truncate_prompt_tokens=20, ways_=(0, 1))],
    "seed": [_with(seed=5, temperature=1, over=6)],
    "tools": [_with(tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, ways_=(2,))],
    "bad_words": [_bad_words],
}
HELD_BACK: dict[str, Case] = {"stop_string": _stop_strings, "incomplete_text": _half_a_character}


def cases() -> Iterator[tuple[str, Case]]:
    """Every reason that a request's fields give, with each of its cases."""
    return ((reason, case) for reason, found in KEPT_TOGETHER.items() for case in found)
