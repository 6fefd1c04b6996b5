"""The text of an answer is the same, whether a stream was given a long prompt or its end."""

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pd_contracts.settings import load
from pd_engine.detokenizer import LEAST, MOST, PLUGINS, WHOLE, TailStream, shorten, tail
from pd_engine.plan import plan
from pd_engine.settings import EngineSettings, Host

DecodeStream = decoders.DecodeStream
TEXTS = [
    "the quick brown fox jumps over the lazy dog, and on again: naïve café",
    "预填充和解码分开在不同的显卡上",
    "👩‍💻🚀 = ß ∑ ✓",
]
SPECIAL = ["<s>", "<|end|>"]


def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen: a token is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Gemma: spaces are ▁, unknown characters are bytes, and the first space is stripped."""
    words = ["▁", *sorted({c for text in TEXTS[:1] for c in text if c != " "}), "▁the", "▁qu", "预"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, fuse_unk=True, unk_token="<s>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in sorted({*"".join(TEXTS), "▁"} - {" "}))], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


TOKENIZERS = {make.__name__: make() for make in (byte_level, byte_fallback, metaspace, word_piece)}


@pytest.fixture(autouse=True)
def _stream_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "DecodeStream", DecodeStream)


def steps(stream: Any, tokenizer: Tokenizer, tokens: list[int]) -> list[str | None]:
    """What each token gives; an error ends it, as vLLM takes another stream then. The rest of its message has the prompt's text."""
    found: list[str | None] = []
    for token in tokens:
        try:
            found.append(stream.step(tokenizer, token))
        except Exception as error:  # noqa: BLE001  the library raises Exception itself
            return [*found, f"{type(error).__name__}: {str(error).partition(' encountered')[0]}"]
    return found


prompts = st.lists(
    st.sampled_from([*TEXTS, *SPECIAL, " ", "  ", "\n\n", "x", "é", "好", "🚀"]) | st.text(max_size=8),
    min_size=3,
    max_size=20,
)


@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    texts=prompts,
    cut=st.integers(0, 12),
    answer=st.lists(st.integers(0, 10_000), min_size=1, max_size=24),
    skip=st.booleans(),
)
@example(name="byte_fallback", texts=[*TEXTS, " "], cut=0, answer=[0, 300], skip=True)
@example(name="byte_level", texts=[*TEXTS, "好"], cut=1, answer=[200, 201], skip=False)
@example(name="byte_fallback", texts=[*TEXTS, *SPECIAL * 10], cut=0, answer=[260, 300], skip=True)
def test_the_end_of_a_prompt_gives_the_text_that_all_of_it_gives(
    name: str, texts: list[str], cut: int, answer: list[int], skip: bool
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = (tokenizer.encode("".join(texts)).ids * 8)[: -cut or None]
    tokens = [token % tokenizer.get_vocab_size() for token in answer]
    expected = steps(DecodeStream(ids=ids, skip_special_tokens=skip), tokenizer, tokens)
    assert steps(TailStream(DecodeStream, ids, skip), tokenizer, tokens) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_long_prompt_is_read_from_its_end(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(TEXTS[0]).ids * 20
    assert LEAST <= len(tail(tokenizer, ids, True)) <= MOST
    assert tail(tokenizer, ids[:WHOLE], True) == ids[:WHOLE]


def test_an_end_without_whole_characters_is_not_used() -> None:
    """Here the library gives the whole prompt's text with the next token; what vLLM answers then stays as it is."""
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode(TEXTS[0] * 5 + "\N{ROCKET}").ids[:-1]
    assert tail(tokenizer, ids, True) == ids


def test_an_end_of_special_tokens_is_not_used_where_they_are_skipped() -> None:
    """The next token would be the first that has a text, so its space would be stripped."""
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = tokenizer.encode(TEXTS[0] * 5 + "<|end|>" * MOST).ids
    assert tail(tokenizer, ids, True) == ids
    assert len(tail(tokenizer, ids, False)) == LEAST


def test_streams_made_afterwards_read_the_end_of_long_prompts() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode(TEXTS[1]).ids * 80
    shorten()
    shorten()
    assert isinstance(decoders.DecodeStream(ids=ids, skip_special_tokens=True), TailStream)
    assert isinstance(decoders.DecodeStream(ids=ids[:WHOLE], skip_special_tokens=True), DecodeStream)
    assert isinstance(decoders.DecodeStream(skip_special_tokens=True), DecodeStream)
    answer = tokenizer.encode(TEXTS[2]).ids
    assert "".join(text or "" for text in steps(decoders.DecodeStream(ids=ids), tokenizer, answer)) == TEXTS[2]


def test_vllm_finds_it_where_an_engine_looks_for_packages() -> None:
    """As vLLM does, in a process with the variables of an engine's start."""
    launch = plan(
        load(EngineSettings, {"PD_ROLE": "combined", "MODEL": "org/model"}),
        Host(vllm_version=(0, 33), address="10.0.0.5"),
        {"PYTHONPATH": "/a"},
    )
    assert launch.environment["PYTHONPATH"] == os.pathsep.join([str(PLUGINS), "/a"])
    code = "from importlib.metadata import entry_points; print([p.load() for p in entry_points(group='vllm.general_plugins')])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, **launch.environment},
        capture_output=True,
        text=True,
    )
    assert "function shorten" in found.stdout, found.stderr


def test_the_stream_of_another_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setattr(decoders, "DecodeStream", Other)
    shorten()
    assert vars(decoders)["DecodeStream"] is Other
