"""Prompt tokens that the engines computed, by their own counters: only they know how many came from a cache."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Final

from pd_analysis.energy.time_slices import Spans
from pd_analysis.records.run import Run
from pd_contracts.names import Role
from pd_contracts.records import EngineTokens

# A small weight, so that time decides if no request was being served between two readings.
_HAIR: Final = 1e-6


def computed_tokens(run: Run, role: Role, work: Spans, shift: float = 0.0) -> float | None:
    """Prompt tokens that the role's engines computed in the measured window; None if one of them does not report it.

    What they computed between the two readings around an edge of the window is divided there as the prompt tokens are that were in
    `work` on either side, for the load begins at the edge and not at the reading.
    """
    by_name: dict[str, list[EngineTokens]] = {}
    for tokens in run.engines:
        if tokens.role is role:
            by_name.setdefault(tokens.name, []).append(tokens)
    found = [_difference(readings, run.window, work, shift) for readings in by_name.values()]
    known = [tokens for tokens in found if tokens is not None]
    return sum(known) if known and len(known) == len(found) else None


def computed_of(tokens: EngineTokens) -> float | None:
    """Prompt tokens computed since the engine's start: its own count, else all of them without those that a cache or another engine had."""
    if tokens.computed is not None:
        return tokens.computed
    if tokens.prompt is None or tokens.cache_hits is None:
        return None
    return tokens.prompt - tokens.cache_hits - (tokens.external_hits or 0.0)


def _difference(
    readings: Sequence[EngineTokens], window: tuple[float, float], work: Spans, shift: float
) -> float | None:
    """None if the readings do not cover the window, or a counter fell because the engine restarted."""
    known = [(reading.t + shift, count) for reading in readings if (count := computed_of(reading)) is not None]
    fell = any(b < a for (_, a), (_, b) in pairwise(known))
    if len(known) < 2 or fell or known[0][0] > window[0] or known[-1][0] < window[1]:
        return None
    first, last = (_at(edge, known, work) for edge in window)
    return last - first


def _at(edge: float, known: Sequence[tuple[float, float]], work: Spans) -> float:
    """The counter at a moment between two readings."""
    after = min(max(bisect_right(known, edge, key=itemgetter(0)), 1), len(known) - 1)
    (t0, count0), (t1, count1) = known[after - 1], known[after]
    before, here, behind = (work.until(t) + _HAIR * (t - t0) for t in (t0, edge, t1))
    return count0 + (count1 - count0) * ((here - before) / (behind - before) if behind > before else 0.0)
