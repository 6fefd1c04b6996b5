"""A tokenizer without a download: 32,000 ids, three to four characters per token of English, and text comes back as it was.

The vocabulary is built from a rule and a list: control tokens, the 256 bytes (so nothing is ever unknown), common words with the
space before them (`words.txt`: the words that open-source documentation uses most), then letters, digits and letter groups in a
fixed order until it is full. Text is cut greedily, longest piece first. Output tokens are drawn from the words, so that a stream
can be read.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from string import ascii_lowercase, ascii_uppercase, digits

VOCABULARY_SIZE = 32_000
END_OF_TEXT = 2
_CONTROL = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
_FIRST_BYTE = 16
_FIRST_WORD = _FIRST_BYTE + 256
_CAPITALISED = 500  # so many of the commonest words also exist as they begin a sentence
_CHUNK = re.compile(r" ?[A-Za-z]+| ?[0-9]+|[^A-Za-z0-9]", re.DOTALL)


def _letter_groups() -> Iterator[str]:
    vowels = "aeiou"
    consonants = [letter for letter in ascii_lowercase if letter not in vowels]
    letters = sorted(ascii_lowercase)
    pairs = [first + second for first, second in itertools.product(letters, repeat=2)]
    triples = [a + b for a, b in itertools.product(pairs, letters) if any(letter in vowels for letter in a + b)]
    yield from (f" {letter}" for letter in ascii_lowercase + ascii_uppercase)
    yield from ("".join(group) for length in (2, 3) for group in itertools.product(digits, repeat=length))
    for group in (*pairs, *triples):
        yield group
        yield f" {group}"
    yield from map("".join, itertools.product(consonants, vowels, consonants, vowels))


class Tokenizer:
    """Text to ids and back. One instance per process; it holds nothing but the vocabulary."""

    def __init__(self) -> None:
        """Build the vocabulary; the same in every process and version."""
        words = (resources.files(__package__) / "words.txt").read_text(encoding="utf-8").split()
        openings = (mark + word.capitalize() for word in words[:_CAPITALISED] for mark in ("", " "))
        unique = dict.fromkeys(itertools.chain((f" {word}" for word in words), openings, _letter_groups()))
        pieces = list(itertools.islice(unique, VOCABULARY_SIZE - _FIRST_WORD))
        self._ids = {piece: number for number, piece in enumerate(pieces, _FIRST_WORD)}
        self._longest = max(map(len, pieces))
        reserved = [*_CONTROL, *("" for _ in range(_FIRST_BYTE - len(_CONTROL)))]
        self._bytes = [
            *(name.encode() for name in reserved),
            *(bytes([n]) for n in range(256)),
            *(p.encode() for p in pieces),
        ]
        self._control = {name: number for number, name in enumerate(_CONTROL)}
        self.words = range(_FIRST_WORD, _FIRST_WORD + len(words))
        self._chunk = functools.lru_cache(maxsize=1 << 16)(self._cut)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens that are spelled out in it count as plain characters."""
        return [number for chunk in _CHUNK.findall(text) for number in self._chunk(chunk)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become replacement characters.

        Raises:
            IndexError: for an id outside the vocabulary.
        """
        return b"".join(self._bytes[number] for number in ids).decode("utf-8", "replace")

    def output_text(self, number: int) -> str:
        """What an output token adds to the text: nothing for a control token."""
        return "" if number < _FIRST_BYTE else self.decode([number])

    def output_json(self) -> list[bytes]:
        """`output_text` of every id as a JSON string, for writing streams without encoding each time."""
        return [json.dumps(self.output_text(number)).encode() for number in range(VOCABULARY_SIZE)]

    def chat(self, messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of (role, text) messages: a control token for the role, the text, an end mark; then the assistant's opening."""
        ids = [self._control["<s>"]]
        for role, text in messages:
            opening = self._control.get(f"<|{role}|>", self._control["<|user|>"])
            ids += [opening, *self.encode(text), self._control["<|end|>"]]
        return [*ids, self._control["<|assistant|>"]] if add_generation_prompt else ids

    def _cut(self, chunk: str) -> tuple[int, ...]:
        ids: list[int] = []
        start = 0
        while start < len(chunk):
            for end in range(min(len(chunk), start + self._longest), start, -1):
                number = self._ids.get(chunk[start:end])
                if number is not None:
                    ids.append(number)
                    break
            else:
                end = start + 1
                ids += [_FIRST_BYTE + byte for byte in chunk[start:end].encode("utf-8", "surrogatepass")]
            start = end
        return tuple(ids)
