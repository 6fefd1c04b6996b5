"""Which chunks of an answer were tokens, and how many each carried, once the whole answer is known. Pure.

If a server sends token ids, or its count so far with each chunk, the numbers are exact. Otherwise three things are unclear until the usage
has come, and stay so without it:

- A chunk without text may be a token whose bytes do not complete a character yet, or a keep-alive. It counts only while the usage has
  more tokens than the chunks with text. It never counts as the first token, because the user has seen no text yet.
- A chunk may carry several tokens (speculative decoding, a proxy that merges chunks). The tokens that the usage has beyond the chunks
  are distributed by the length of the chunks' texts.
- An end-of-text token has no chunk with text. It belongs to the last chunk.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec

from pd_loadgen.prompts.token_estimate import estimated_tokens

_BUNDLE: Final = 4  # a chunk with this many times the text of the others carries several tokens


class Mark(msgspec.Struct):
    """One chunk with output, or one that may have some.

    Attributes:
        at: when it came.
        tokens: how many tokens it carries for certain; 0 if it has no text.
        exact: the server itself reported the number.
        text: what it said.
        ends: it also carries the finish reason.
    """

    at: float
    tokens: int
    exact: bool
    text: str
    ends: bool = False


def settle(marks: Sequence[Mark], total: int | None, *, stopped: bool) -> list[tuple[float, int]]:
    """(time, tokens) of each chunk that was a token.

    Args:
        marks: in the order in which they came.
        total: the answer's tokens by the server's usage; None if it sent none.
        stopped: the model ended the answer itself, so that one of them is an end-of-text token.
    """
    counts = [mark.tokens for mark in marks]
    if total is not None and sum(counts) > total:  # counts that grow beyond the whole are no counts of each chunk
        counts = [min(1, mark.tokens) for mark in marks]
    spare = 0 if total is None else total - sum(counts)
    if spare > 0 and marks:
        _count_blanks(marks, counts, spare)
        _share_out(marks, counts, total or 0, stopped=stopped)
    return [(mark.at, tokens) for mark, tokens in zip(marks, counts, strict=True) if tokens]


def _count_blanks(marks: Sequence[Mark], counts: list[int], spare: int) -> None:
    """Count chunks without text as tokens if the usage has enough tokens for all of them."""
    blanks = [index for index, tokens in enumerate(counts) if not tokens]
    first = next((index for index, tokens in enumerate(counts) if tokens), None)
    if first is None:  # no text at all: special tokens, each with its chunk, or all in the last chunk
        for index in blanks if len(blanks) <= spare else blanks[-1:]:
            counts[index] = 1
        return
    later = [index for index in blanks if index > first and not marks[index].ends]
    last = [index for index in blanks if index > first and marks[index].ends]
    if len(later) <= spare:
        for index in [*later, *(last if len(later) < spare else [])]:
            counts[index] = 1
    early = len([index for index in blanks if index < first])
    if early and spare == early + len(later) + len(last):
        counts[first] += early  # they were tokens, and the first text is that of all of them


def _share_out(marks: Sequence[Mark], counts: list[int], total: int, *, stopped: bool) -> None:
    """Give the tokens that the usage has beyond the chunks to those with the most text, and the rest to the last chunk."""
    last = max(index for index, tokens in enumerate(counts) if tokens)
    spare = total - sum(counts)
    unseen = 1 if stopped and spare and marks[last].text else 0  # the end-of-text token, which no chunk showed
    more = [0 if mark.exact or not mark.text else estimated_tokens(mark.text) - 1 for mark in marks]
    usual = median(part for part, mark in zip(more, marks, strict=True) if mark.text) + 1 if any(more) else 1
    bundles = [part if part + 1 >= max(_BUNDLE * usual, _BUNDLE) else 0 for part in more]
    _give(counts, bundles, min(spare - unseen, sum(bundles)))
    spare = total - sum(counts) - unseen
    if spare >= len(marks) / 2:  # all of them carry several; fewer could be the estimate's own errors
        _give(counts, more, spare)
    if not marks[last].exact:
        counts[last] += total - sum(counts)


def _give(counts: list[int], parts: Sequence[int], amount: int) -> None:
    """Add an amount to the counts in proportion to the parts; does nothing if there are no parts."""
    whole = sum(parts)
    if not whole or amount <= 0:
        return
    shares = [amount * part // whole for part in parts]
    # what rounding left over goes to those that it took most from
    order = sorted(range(len(parts)), key=lambda index: (-(amount * parts[index] % whole), index))
    for index in order[: amount - sum(shares)]:
        shares[index] += 1
    for index, share in enumerate(shares):
        counts[index] += share
