"""The next rate of a search: double until requests miss the limits, then measure around the knee. Pure.

All deployments use the same grid of rates, so that they share rates if their knees are close. Each also gets the rates of the
deployments before it, up to its own knee, because only equal loads can be compared.
"""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

# Between the last good rate and the first bad one, in quarters of an octave.
_AROUND: Final = (2**0.5, 2**0.25, 2**0.75)
_DOWN: Final = 4  # halvings of the first rate, if even that is too high
_UP: Final = 12  # doublings


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result at one rate: the share of requests that met every limit, 0 to 1, and whether the client kept up."""

    attainment: float
    client_in_time: bool = True

    def good(self, attainment: float) -> bool:
        """Whether a higher rate is worth trying."""
        return self.client_in_time and self.attainment >= attainment


def next_rate(
    done: Mapping[float, Outcome], others: Collection[float], *, start: float, attainment: float
) -> float | None:
    """The rate to try next, requests per second per GPU; None if this deployment needs no more.

    `others` are the rates that deployments before this one had.
    """
    ladder = _ladder(done, start, attainment)
    if ladder is not None:
        return ladder
    good = [rate for rate, outcome in done.items() if outcome.good(attainment)]
    bad = [rate for rate, outcome in done.items() if not outcome.good(attainment)]
    ceiling = min(bad, default=None)
    below = [rate for rate in good if ceiling is None or rate < ceiling]
    wanted: list[float] = []
    if below and ceiling is not None:
        step = max(rate for rate in below if _on_ladder(rate, start))
        wanted = [_round(step * factor) for factor in _AROUND]
    wanted += sorted(rate for rate in others if ceiling is None or rate <= ceiling)
    return next((rate for rate in wanted if rate not in done), None)


def _ladder(done: Mapping[float, Outcome], start: float, attainment: float) -> float | None:
    """The next rate on the grid; None once one is good and the next higher one bad, or the grid ends."""
    rungs = [_round(start * 2**power) for power in range(-_DOWN, _UP + 1)]
    first = rungs[_DOWN]
    if first not in done:
        return first
    rising = done[first].good(attainment)
    for rung in rungs[_DOWN + 1 :] if rising else reversed(rungs[:_DOWN]):
        if rung not in done:
            return rung
        if done[rung].good(attainment) is not rising:
            return None
    return None


def _on_ladder(rate: float, start: float) -> bool:
    return any(rate == _round(start * 2**power) for power in range(-_DOWN, _UP + 1))


def _round(rate: float) -> float:
    """Round to three significant digits, because rates appear in folder names and tables."""
    return float(f"{rate:.3g}")
