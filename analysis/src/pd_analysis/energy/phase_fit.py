"""How much of the energy of a combined engine's board belongs to prefill: a fit of its power over time.

Both phases share every step, so no instrument separates them. But their mix changes along a run, and the board's energy with it:

    joules of a second = idle + a · prompt tokens + b · output tokens + c · seconds with a decode

with no part below 0. Prefill's part of a slice is a · prompt tokens of what the last three predict; the slice's joules, which are the counter's,
are divided in that ratio.
"""

from dataclasses import dataclass
from itertools import chain, combinations
from typing import Final

import numpy as np

from pd_analysis.energy.time_slices import Slices, Spans, covered
from pd_analysis.records.columns import Floats

FIT_S: Final = 1.0  # the counter moves every 0.1 s, so that a sum over a second is good to a tenth
FEWEST: Final = 8  # seconds, below which four numbers cannot be fitted


@dataclass(frozen=True)
class Split:
    """The fit: joules per prompt token, an output token, and a second with a decode; `r2` is how much of the variation it explains."""

    prompt_j: float
    output_j: float
    decode_w: float
    r2: float

    @property
    def separates(self) -> bool:
        """False if one phase got nothing: then this run does not separate the phases."""
        return self.prompt_j > 0 and self.output_j + self.decode_w > 0


def fit(slices: Slices, joules: Floats, prefill: Spans, decode: Spans, idle_w: float | None) -> Split | None:
    """Fit a run's slices; None if it is too short. An unknown idle power is fitted too."""
    columns = [slices.weights(spans) for spans in (prefill, decode, covered(decode))]
    group = max(1, round(FIT_S / slices.width))
    whole = slices.count // group * group
    if whole // group < FEWEST:
        return None
    summed, *parts = (column[:whole].reshape(-1, group).sum(axis=1) for column in (joules, *columns))
    seconds = np.full(whole // group, group * slices.width)
    target = summed if idle_w is None else np.maximum(summed - idle_w * seconds, 0.0)
    explaining = np.column_stack([*parts, *([seconds] if idle_w is None else [])])
    found = least(explaining, target)
    left, spread = (float((values**2).sum()) for values in (target - explaining @ found, target - target.mean()))
    prompt_j, output_j, decode_w = map(float, found[:3])
    return Split(prompt_j, output_j, decode_w, 1 - left / spread if spread else 0.0)


def least(columns: Floats, target: Floats) -> Floats:
    """Least squares without negative coefficients: the best of the solutions on every set of columns (there are four at most)."""
    width = columns.shape[1]
    best, error = np.zeros(width), float((target**2).sum())
    for chosen in map(list, chain.from_iterable(combinations(range(width), size) for size in range(1, width + 1))):
        found, *_ = np.linalg.lstsq(columns[:, chosen], target, rcond=None)
        left = float(((target - columns[:, chosen] @ found) ** 2).sum())
        if (found >= 0).all() and left < error:
            best, error = np.zeros(width), left
            best[chosen] = found
    return best


def parted(slices: Slices, joules: Floats, prefill: Spans, decode: Spans, split: Split) -> tuple[Floats, Floats]:
    """Prefill's and decode's joules of each slice; together they are the slice's."""
    mine = split.prompt_j * slices.weights(prefill)
    other = split.output_j * slices.weights(decode) + split.decode_w * slices.weights(covered(decode))
    both = mine + other
    share = np.divide(mine, both, out=np.zeros(slices.count), where=both > 0)
    return joules * share, joules * (1 - share)
