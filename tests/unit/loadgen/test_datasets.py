"""Prompts: exact counts, valid ids, and the same ones for the same seed in every process."""

import random
import subprocess
import sys

import pytest

from pd_loadgen.prompts.datasets import FIRST_TOKEN_ID, Dataset, prompt, random_ids, text_words


def ids(name: str = "Excerpt 0", *, seed: int = 0, tokens: int = 64, vocab_size: int = 1000) -> list[int]:
    made = prompt(Dataset.RANDOM, seed=seed, name=name, input_tokens=tokens, vocab_size=vocab_size)
    assert isinstance(made, list)
    return made


def text(name: str = "Excerpt 0", *, seed: int = 0, tokens: int = 100) -> str:
    made = prompt(Dataset.TEXT, seed=seed, name=name, input_tokens=tokens, vocab_size=1000)
    assert isinstance(made, str)
    return made


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 4096])
def test_random_prompts_have_exactly_the_tokens_asked_for(tokens: int) -> None:
    assert len(ids(tokens=tokens)) == tokens


def test_equal_ids_are_one_object_so_that_a_prompt_takes_eight_bytes_a_token() -> None:
    drawn = random_ids(random.Random(1), 20_000, 1000)

    assert len({id(one) for one in drawn}) == len(set(drawn))


def test_random_ids_use_the_whole_range_and_nothing_else() -> None:
    drawn = set(random_ids(random.Random(1), 20_000, 50))

    assert drawn == set(range(FIRST_TOKEN_ID, 50))


def test_default_ids_are_valid_for_a_vocabulary_of_a_thousand() -> None:
    assert max(ids(tokens=5000)) < 1000


def test_prompts_differ_between_requests_and_seeds() -> None:
    assert len({tuple(ids(f"Excerpt {index}")) for index in range(200)}) == 200
    assert ids(seed=1) != ids(seed=2)


def test_prompts_are_the_same_in_another_process() -> None:
    code = (
        "from pd_loadgen.prompts.datasets import *;"
        "print(prompt(Dataset.RANDOM, seed=5, name='Excerpt 3', input_tokens=8, vocab_size=1000));"
        "print(prompt(Dataset.TEXT, seed=5, name='Excerpt 3', input_tokens=40, vocab_size=1000))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("0", "1")
    }

    assert outputs == {f"{ids('Excerpt 3', seed=5, tokens=8)}\n{text('Excerpt 3', seed=5, tokens=40)}\n"}


def test_text_prompts_are_an_instruction_and_consecutive_words_of_the_shipped_text() -> None:
    instruction, passage = text(tokens=130).split("\n\n")

    words = " ".join(text_words() * 2)
    assert instruction.endswith("in the same style.")
    assert passage in words
    assert len(f"{instruction} {passage}".split()) == 100  # at 1.3 tokens per word


def test_no_two_text_prompts_share_their_beginning() -> None:
    # a prefix cache works in blocks of tokens from the start; the number stands in the first one
    assert len({text(f"Excerpt {index}")[:12] for index in range(100)}) == 100


def test_text_prompts_may_be_longer_than_the_text() -> None:
    assert len(text(tokens=5200).split()) == 4000


def test_the_shipped_text_is_long_enough_to_vary() -> None:
    assert 6_000 < len(" ".join(text_words())) < 9_000
