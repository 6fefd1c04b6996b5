"""A small model of a sequence's KV: `ENTRY_BYTES` per token instead of 128 KiB, but as sensitive to damage as real KV.

A token's entry is a digest of the entry before it and the token, so it depends on the whole prefix in its order. The next output
token is a digest of all entries up to there. An engine that received the KV of a prompt never looks at the prompt's tokens again,
except for the last one, which it computes itself as vLLM does: so KV that is lost, cut, mixed up or damaged on its way changes the
output, and KV that arrives whole gives the tokens of an engine that computed it itself. It also follows that a prompt extended by
its own first output tokens continues alike, as greedy decoding does.
"""

from collections.abc import Sequence
from hashlib import blake2b, blake2s
from struct import pack

ENTRY_BYTES = 32


class KvCache:
    """The KV of one sequence; grows by loading and by computing."""

    def __init__(self, model: str) -> None:
        """Start empty; the model's name stands for its weights."""
        self._last = blake2s(model.encode()).digest()
        self._all = blake2b(self._last, digest_size=16)

    def load(self, entries: bytes) -> None:
        """Take over entries that another engine computed. They are believed: nothing here could check them."""
        if entries:
            self._all.update(entries)
            self._last = entries[-ENTRY_BYTES:]

    def compute(self, tokens: Sequence[int]) -> bytes:
        """Compute the entries of tokens that follow; returns them."""
        last, entries = self._last, []
        for token in tokens:
            last = blake2s(last + token.to_bytes(4, "little")).digest()
            entries.append(last)
        joined = b"".join(entries)
        self._last = last
        self._all.update(joined)
        return joined

    def draw(self, noise: bytes = b"") -> tuple[int, int]:
        """Two numbers of 64 bits that all KV so far decides, and `noise`: what token comes next, and whether the output ends."""
        drawn = self._all.copy()
        drawn.update(noise)
        digest = drawn.digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def noise(seed: int | None, number: int) -> bytes:
    """What a seed adds to the `number`-th draw; nothing without a seed."""
    return b"" if seed is None else pack("<QQ", seed % 2**64, number)


def followed(written: bytes, token: int) -> bytes:
    """The digest of an output of which `written` is one, and this token."""
    return blake2s(written + pack("<Q", token)).digest()


def next_token(cache: KvCache, words: range, *, end: int, end_one_in: int, may_end: bool, noise: bytes = b"") -> int:
    """The output token that follows: one of `words`, or `end` once in `end_one_in` times (0: never) where it may.

    Where the output may not end (`ignore_eos`, or below `min_tokens`) a word takes the end's place.
    """
    choice, fate = cache.draw(noise)
    if may_end and end_one_in and fate % end_one_in == 0:
        return end
    return words[choice % len(words)]
