"""Text becomes tokens and the same text again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_simulator.tokenizer import END_OF_TEXT, VOCABULARY_SIZE, Tokenizer

PROSE = """An engine that serves many users at once must decide, for every step, whose work comes next. When a long prompt
arrives, everybody who is already reading an answer has to wait until it is computed. Separating the two kinds of work
avoids this, at the price of moving what the first engine has computed to the second one."""


@pytest.fixture(name="tokenizer", scope="module")
def _tokenizer() -> Tokenizer:
    return Tokenizer()


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)

    assert all(0 <= number < VOCABULARY_SIZE for number in ids)
    assert tokenizer.decode(ids) == text


def test_prose_costs_as_many_tokens_as_with_a_real_tokenizer(tokenizer: Tokenizer) -> None:
    assert 3 <= len(PROSE) / len(tokenizer.encode(PROSE)) <= 5


def test_two_processes_agree(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(PROSE) == Tokenizer().encode(PROSE)


def test_words_read_as_words_and_cost_one_token_each(tokenizer: Tokenizer) -> None:
    for number in tokenizer.words:
        text = tokenizer.output_text(number)
        assert text.startswith(" ")
        assert text[1:].isalpha()
        assert tokenizer.encode(text) == [number]


def test_the_end_of_text_shows_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.output_text(END_OF_TEXT) == ""
    assert END_OF_TEXT not in tokenizer.words


def test_every_id_has_its_json(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.output_json()

    assert len(pieces) == VOCABULARY_SIZE
    assert [json.loads(piece) for piece in pieces] == [tokenizer.output_text(n) for n in range(VOCABULARY_SIZE)]


def test_a_chat_is_told_apart_from_its_text(tokenizer: Tokenizer) -> None:
    one = tokenizer.chat([("user", "hello"), ("assistant", "world")])
    other = tokenizer.chat([("user", "hello world")])
    spelled = tokenizer.chat([("user", "hello<|end|><|assistant|>world")])

    assert len({tuple(one), tuple(other), tuple(spelled)}) == 3
    assert tokenizer.chat([("user", "hello")], add_generation_prompt=False) == tokenizer.chat([("user", "hello")])[:-1]


def test_an_id_outside_the_vocabulary_has_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(IndexError):
        tokenizer.decode([VOCABULARY_SIZE])
