"""Greedy answers through a proxy, token by token."""

import random
from typing import Any

import msgspec

from pd_contracts import sse
from pd_control.client import events, post

TIMEOUT_S = 30.0


def prompt(length: int) -> list[int]:
    """A prompt of `length` token ids, other ones at every position."""
    return [(7 * position + 11) % 5000 + 100 for position in range(length)]


def random_prompt(length: int, salt: int | None = None) -> list[int]:
    """Token ids of the tiny model, random but the same each time; other ones with another `salt`."""
    generator = random.Random(length if salt is None else length * 1000 + salt)
    return [generator.randrange(10, 1000) for _ in range(length)]


def plain(url: str, model: str, tokens: list[int], output: int) -> list[int]:
    """Tokens of an answer that is not streamed."""
    reply = post(f"{url}/v1/completions", _body(model, tokens, output), {}, TIMEOUT_S)
    assert reply.status == 200, reply.body
    found: list[int] = reply.json()["choices"][0]["token_ids"]
    return found


def streamed(url: str, model: str, tokens: list[int], output: int) -> list[int]:
    """Tokens of a streamed answer."""
    reply = post(f"{url}/v1/completions", {**_body(model, tokens, output), "stream": True}, {}, TIMEOUT_S)
    assert reply.status == 200, reply.body
    found: list[int] = []
    for event in events(reply.body):
        if isinstance(event, sse.Event) and not event.done:
            for choice in msgspec.json.decode(event.data)["choices"]:
                found += choice["token_ids"] or []
    return found


def _body(model: str, tokens: list[int], output: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": tokens,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
