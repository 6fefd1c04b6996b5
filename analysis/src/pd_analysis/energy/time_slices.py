"""Divides energy among requests: the joules of a slice of time are shared by the requests that were being served in it, by their tokens.

A request's tokens are spread evenly over the time in which it was served. The joules of slices without a request are the residual:
the shares and the residual always sum to all joules.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from pd_analysis.records.columns import Floats

SHORTEST_S: Final = 1e-3  # a request of zero duration is spread over this


@dataclass(frozen=True)
class Spans:
    """When each request was being served, and its tokens; arrays of one length."""

    start: Floats
    end: Floats
    tokens: Floats

    def until(self, t: float) -> float:
        length = np.maximum(self.end - self.start, SHORTEST_S)
        return float((self.tokens * np.clip((t - self.start) / length, 0.0, 1.0)).sum())


class Slices:
    """Equal slices of a window, with the tokens that requests have in each."""

    def __init__(self, window: tuple[float, float], width_s: float) -> None:
        """Choose the number of slices whose width is nearest to `width_s`; at least one."""
        self.count = max(1, round((window[1] - window[0]) / width_s))
        self.edges = np.linspace(*window, self.count + 1)
        self.width = (window[1] - window[0]) / self.count

    def weights(self, spans: Spans) -> Floats:
        cut = _Cut.of(self, spans)
        weights = np.zeros(self.count)
        np.add.at(weights, cut.first, cut.rate * cut.in_first)
        np.add.at(weights, cut.last, cut.rate * cut.in_last)
        return weights + self._whole(cut) * self.width

    def share(self, joules: Floats, spans: Spans) -> tuple[Floats, float]:
        """Joules of each request, and the joules of slices without a request."""
        weights, cut = self.weights(spans), _Cut.of(self, spans)
        used = weights > 0
        each = np.divide(joules, weights, out=np.zeros(self.count), where=used)
        # Only slices that some request fills: a tiny part of a request in its first slice makes joules per token huge, and sums
        # with such values would lose the precision of the others.
        filled = np.where(self._whole(cut) > 0, each * self.width, 0.0)
        before = np.concatenate(([0.0], np.cumsum(filled)))
        whole = np.maximum(before[cut.last] - before[np.minimum(cut.first + 1, self.count)], 0.0)
        shares = cut.rate * (each[cut.first] * cut.in_first + each[cut.last] * cut.in_last + whole)
        return shares, float(joules[~used].sum())

    def _whole(self, cut: "_Cut") -> Floats:
        """Tokens a second of the requests that were in work during all of a slice. One without tokens holds no slice open."""
        some = (cut.last > cut.first + 1) & (cut.rate > 0)
        steps, counts = np.zeros(self.count + 1), np.zeros(self.count + 1, np.int64)
        for at, sign in ((cut.first[some] + 1, 1), (cut.last[some], -1)):
            np.add.at(steps, at, sign * cut.rate[some])
            np.add.at(counts, at, sign)
        # Sums and differences of rates leave rounding errors in empty slices; integer counts do not.
        return np.where(np.cumsum(counts[:-1]) > 0, np.cumsum(steps[:-1]), 0.0)


@dataclass(frozen=True)
class _Cut:
    """Spans cut to the slices: first and last slice, seconds in either (those of one slice count as in the first), and tokens per second."""

    first: np.typing.NDArray[np.int64]
    last: np.typing.NDArray[np.int64]
    in_first: Floats
    in_last: Floats
    rate: Floats

    @classmethod
    def of(cls, slices: Slices, spans: Spans) -> "_Cut":
        length = np.maximum(spans.end - spans.start, SHORTEST_S)
        begin, end = slices.edges[0], slices.edges[-1]
        a = np.clip(spans.start, begin, end)
        b = np.clip(spans.start + length, begin, end)
        first = np.clip(np.searchsorted(slices.edges, a, side="right") - 1, 0, slices.count - 1)
        last = np.maximum(np.clip(np.searchsorted(slices.edges, b, side="left") - 1, 0, slices.count - 1), first)
        one = first == last
        return cls(
            first=first,
            last=last,
            in_first=np.where(one, b - a, slices.edges[first + 1] - a),
            in_last=np.where(one, 0.0, b - slices.edges[last]),
            rate=np.where(b > a, spans.tokens / length, 0.0),
        )


def covered(spans: Spans) -> Spans:
    """The time in which at least one request was being served, as spans whose tokens are their seconds."""
    order = np.argsort(spans.start, kind="stable")
    start, end = spans.start[order], np.maximum.accumulate(spans.end[order])
    opens = np.concatenate(([True], start[1:] > end[:-1])) if start.size else np.zeros(0, bool)
    begun = start[opens]
    ended = end[np.concatenate((np.flatnonzero(opens)[1:] - 1, [start.size - 1]))] if start.size else end
    return Spans(begun, ended, ended - begun)
