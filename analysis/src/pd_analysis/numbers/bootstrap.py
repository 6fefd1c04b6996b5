"""How far a number would move if the load were offered again: seeded bootstrap draws, and intervals from them.

Drawing a percentile's rank is drawing from a beta distribution: the k-th smallest of n independent requests lies at a share of them
that is Beta(k, n + 1 − k) distributed, which is the bootstrap's answer without its n draws. Requests of one run are not independent,
because a queue delays all that wait in it: n is divided by how much more blocks of consecutive requests vary than chance explains.
Where a load was repeated with other seeds, repeats are drawn as well.
"""

import zlib
from collections.abc import Callable
from typing import Final

import numpy as np

from pd_analysis.numbers.evaluation import Result
from pd_analysis.records.columns import Floats, quantiles

DRAWS: Final = 2000
LEVEL: Final = 95.0  # per cent of the draws that an interval holds
_SEED: Final = 20_240_607
_BLOCKS: Final = 20
_BLOCK_LEAST: Final = 5  # with fewer requests per block, blocks say nothing

Draws = Callable[[Result], Floats | None]


def interval(draws: Floats) -> tuple[float, float]:
    """The middle `LEVEL` per cent."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(draws, (tail, 100 - tail))
    return float(low), float(high)


def of_percentile(column: str, percentile: int) -> Draws:
    """Draws of a percentile of a column of requests; None with fewer than two values."""

    def draws(result: Result) -> Floats | None:
        return _over_repeats(result, lambda one: _percentile(one, column, percentile))

    return draws


def of_rate(column: str, scale: Callable[[Result], float | None]) -> Draws:
    """Draws of the number of requests that have a flag, times what `scale` says."""

    def draws(result: Result) -> Floats | None:
        return _over_repeats(result, lambda one: _share(one, column, scale))

    return draws


def of_repeats(get: Callable[[Result], float | None]) -> Draws:
    """Draws of a number that one run gives once, such as joules: only repeated runs show how far it varies."""

    def draws(result: Result) -> Floats | None:
        return _over_repeats(result, lambda one: _constant(get(one))) if result.repeats else None

    return draws


def _constant(value: float | None) -> Floats | None:
    return None if value is None else np.full(DRAWS, value)


def _generator(result: Result, what: str) -> np.random.Generator:
    """A generator seeded by run and number, so that every report of the same records draws the same, wherever they lie."""
    run = result.run
    own = f"{run.manifest.run_id}:{run.manifest.deployment.label}:{run.path.name}:{what}"
    return np.random.default_rng([_SEED, zlib.crc32(own.encode())])


def _over_repeats(result: Result, own: Draws) -> Floats | None:
    if not result.repeats:
        return own(result)
    each = [own(repeat) for repeat in result.repeats]
    known = np.array([draws for draws in each if draws is not None])
    if len(known) < len(each):
        return None
    generator = _generator(result, "repeats")
    chosen = generator.integers(0, len(known), (len(known), DRAWS))
    return np.asarray(known[chosen, np.arange(DRAWS)].mean(axis=0))


def _percentile(result: Result, column: str, percentile: int) -> Floats | None:
    ordered = result.requests.ordered(column)
    count = ordered.size
    if count < 2:
        return None
    value = float(quantiles(ordered, [percentile])[0])
    own = result.requests.served[column].dropna().to_numpy() if column != "itl" else np.empty(0)
    effective = max(2.0, count / design_effect(own > value))
    generator = _generator(result, f"{column}{percentile}")
    rank = (effective - 1) * percentile / 100 + 1
    shares = generator.beta(rank, effective + 1 - rank, DRAWS)
    return quantiles(ordered, 100 * shares)


def _share(result: Result, column: str, scale: Callable[[Result], float | None]) -> Floats | None:
    factor = scale(result)
    flags = result.requests.measured[column].to_numpy(dtype=bool)
    if factor is None or not flags.size:
        return None
    effective = max(1, round(flags.size / design_effect(flags)))
    generator = _generator(result, column)
    return np.asarray(generator.binomial(effective, flags.mean(), DRAWS) / effective * flags.size * factor)


def design_effect(flags: np.ndarray) -> float:
    """How many times more the shares of consecutive blocks vary than those of independent requests would; at least 1."""
    size = len(flags) // _BLOCKS
    share = float(flags.mean()) if len(flags) else 0.0
    if size < _BLOCK_LEAST or not 0 < share < 1:
        return 1.0
    blocks = flags[: size * _BLOCKS].reshape(_BLOCKS, size).mean(axis=1)
    return max(1.0, float(blocks.var(ddof=1)) * size / (share * (1 - share)))
