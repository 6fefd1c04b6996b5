"""Counting a body's items without parsing it gives exactly the number that a parser finds."""

import json
import tracemalloc
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_proxy.errors import BadRequestError
from pd_proxy.protocol import bounds
from pd_proxy.protocol.bounds import SMALL_BYTES, check_items, elements
from pd_proxy.protocol.endpoints import Endpoint
from pd_proxy.protocol.exclusions import may_migrate, minimum_of, stops_of
from pd_proxy.protocol.generation import Limits, parse

TEXTS = st.text(alphabet='a"\\[]{},: \u00e9', max_size=8)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
)
PADDING = b" " * SMALL_BYTES


def items(value: Any) -> int:
    """Strings, lists and objects, names included."""
    if isinstance(value, str):
        return 1
    if isinstance(value, list):
        return 1 + sum(map(items, value))
    if isinstance(value, dict):
        return 1 + sum(1 + items(one) for one in value.values())
    return 0


@given(VALUES, st.booleans(), st.integers(1, 9))
def test_items_are_counted_exactly(value: Any, ascii_: bool, piece: int) -> None:
    with mock.patch.object(bounds, "PIECE_BYTES", piece):
        _check_items_of(value, ascii_)


def _check_items_of(value: Any, ascii_: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_).encode() + PADDING
    found = items(value)
    check_items(body, found)
    if found:
        with pytest.raises(BadRequestError, match="MAX_BODY_ITEMS"):
            check_items(body, found - 1)


def test_a_small_body_cannot_hold_too_much() -> None:
    check_items(b"[" * SMALL_BYTES, 1)


@given(
    st.one_of(st.lists(TEXTS, min_size=1), st.lists(st.lists(st.integers(0, 9)), min_size=1)),
    st.integers(1, 9) | st.just(bounds.PIECE_BYTES),
)
def test_prompts_are_counted_exactly(prompts: list[Any], piece: int) -> None:
    with mock.patch.object(bounds, "PIECE_BYTES", piece):
        assert elements(json.dumps(prompts).encode()) == len(prompts)


@given(st.text(alphabet="\\u,a"), st.integers(1, 9))
def test_counting_in_pieces_is_counting(text: str, piece: int) -> None:
    data = text.encode()
    with mock.patch.object(bounds, "PIECE_BYTES", piece):
        assert bounds.occurrences(data, b"\\u") == data.count(b"\\u")


@pytest.mark.parametrize("prompt", [["x"] * 11, [[1]] * 11])
def test_too_many_prompts_are_refused(prompt: list[Any]) -> None:
    body = json.dumps({"prompt": prompt}).encode()
    assert parse(Endpoint.COMPLETIONS, body, Limits(prompts=11)).sequences == 11
    with pytest.raises(BadRequestError, match="MAX_PROMPTS"):
        parse(Endpoint.COMPLETIONS, body, Limits(prompts=10))


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":[' + b"[1]," * 500_000 + b"[1]]}",
        b'{"prompt":[' + b'"",' * 500_000 + b'""]}',
        b'{"messages":[' + b"{}," * 500_000 + b"{}]}",
        b'{"prompt":"x"' + b"".join(b',"%d":1' % number for number in range(300_000)) + b"}",
        b'{"prompt":' + b"[" * 500_000 + b"}",
    ],
    ids=["lists", "strings", "objects", "names", "nested"],
)
def test_a_body_of_too_many_things_is_refused_before_it_is_read(body: bytes) -> None:
    for endpoint in (Endpoint.COMPLETIONS, Endpoint.CHAT):
        with pytest.raises(BadRequestError, match="MAX_BODY_ITEMS"):
            parse(endpoint, body)


def test_a_long_text_is_one_thing_whatever_is_in_it() -> None:
    text = '{"a": [1, 2], \\"b\\"}' * 100_000
    body = json.dumps({"prompt": [text, "other"], "messages": [{"content": text}]}).encode()
    assert parse(Endpoint.COMPLETIONS, body).sequences == 2
    assert parse(Endpoint.CHAT, body).sequences == 1
    ids = json.dumps({"prompt": list(range(1_000_000))}).encode()
    assert parse(Endpoint.COMPLETIONS, ids).tokens == 1_000_000


@pytest.mark.parametrize(
    "messages", [b"1" + b",1" * 1_000_000, b"[1" + b",1" * 1_000_000 + b"]"], ids=["flat", "nested"]
)
def test_numbers_in_the_place_of_conversations_are_refused_at_the_first_one(messages: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequestError, match="list of conversations"):
            parse(Endpoint.BATCH, b'{"messages":[' + messages + b"]}")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, "the body once more, but no object for each number"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["stop", "min_tokens", "temperature", "response_format", "max_tokens"])
def test_a_field_of_millions_of_numbers_is_left_to_the_engine(name: str) -> None:
    body = b'{"messages":[{"content":"hi"}],"%b":[1000%b]}' % (name.encode(), b",1000" * 1_000_000)
    generation = parse(Endpoint.CHAT, body)
    tracemalloc.start()
    try:
        assert may_migrate(generation) is not None
        stops_of(generation)
        minimum_of(generation)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, "no object for each number"
    finally:
        tracemalloc.stop()
