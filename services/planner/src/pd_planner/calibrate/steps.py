"""An engine's steps, seen from outside: all tokens of one step come together, so the stamps of an engine's streams show its steps.

From them the cost of a decode step follows directly: how long steps take, against how many sequences they had and how much these looked back
on. Windows of several steps are used, because the tokens of one step may come late (the next step is launched first) and then the next
gap is as much shorter; their sum is not touched by that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pd_planner.calibrate.measured import Stream
from pd_planner.traffic.load import Floats, Ints

WINDOW: Final = 16
# A gap below this fraction of the usual one is within a step: the tokens of one step are written one after the other.
_SAME_STEP: Final = 0.25
# A window whose steps took less than this part of the usual time holds tokens that came together late.
_SHORTEST: Final = 0.7


@dataclass(frozen=True)
class Steps:
    """One entry per step, in order: when its first token came; how many tokens, first tokens and last tokens it had; what the streams of all
    its tokens, and of those that are not first, looked back on; prompt tokens of the streams that it began."""

    at: Floats
    tokens: Ints
    begun: Ints
    ended: Ints
    context: Ints
    context_going: Ints
    prompts: Ints


def steps_of(streams: Sequence[Stream]) -> Steps:
    """The steps of one engine, from all answers that it wrote (at least one with two tokens)."""
    lengths = np.array([len(stream.stamps) for stream in streams])
    times = np.concatenate([stream.stamps for stream in streams])
    owner = np.repeat(np.arange(len(streams)), lengths)
    number = np.concatenate([np.arange(length) for length in lengths])
    order = np.argsort(times, kind="stable")
    times, owner, number = times[order], owner[order], number[order]
    step = _grouped(times, owner, _SAME_STEP * _usual_gap(streams))
    prompt = np.array([stream.prompt for stream in streams])[owner]
    first, last = number == 0, number == lengths[owner] - 1
    behind = prompt + number - 1
    count = int(step[-1]) + 1

    def per_step(values: Floats | Ints) -> Ints:
        return np.bincount(step, values, count).astype(np.int64)

    return Steps(
        at=times[np.searchsorted(step, np.arange(count))],
        tokens=per_step(np.ones(len(step))),
        begun=per_step(first.astype(np.float64)),
        ended=per_step(last.astype(np.float64)),
        context=per_step(behind),
        context_going=per_step(np.where(first, 0, behind)),
        prompts=per_step(np.where(first, prompt, 0)),
    )


def _usual_gap(streams: Sequence[Stream]) -> float:
    gaps = [float(np.median(np.diff(stream.stamps))) for stream in streams if len(stream.stamps) > 1]
    return float(np.median(gaps)) if gaps else 0.0


def _grouped(times: Floats, owner: Ints, close: float) -> Ints:
    """The number of the step of each token: a new one begins when a stream would have its second token, or after a pause."""
    steps, seen = np.empty(len(times), np.int64), set[int]()
    step, before = 0, float(times[0])
    for position, (time, stream) in enumerate(zip(times.tolist(), owner.tolist(), strict=True)):
        if stream in seen or time - before > close:
            step += 1
            seen.clear()
        seen.add(stream)
        steps[position], before = step, time
    return steps


@dataclass(frozen=True)
class Windows:
    """Sums over windows of steps in which the engine never paused; one entry per window.

    Attributes:
        took_ms: the window's length.
        batch, context: sequences and what they looked back on, summed over the steps; of plain engines without those that a step began,
            because there a prompt is computed, not decoded.
        joins, joined_tokens: sequences begun, and their prompt tokens.
    """

    took_ms: Floats
    batch: Floats
    context: Floats
    joins: Floats
    joined_tokens: Floats


def windows_of(steps: Steps, *, plain: bool) -> Windows:
    rows = list(_rows(steps, plain=plain))
    return Windows(*np.array(rows, np.float64).reshape(-1, 5).T)


def _rows(steps: Steps, *, plain: bool) -> Iterator[tuple[float, ...]]:
    gaps = np.diff(steps.at) * 1e3
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    busy = steps.tokens - steps.ended > 0
    batch = steps.tokens - steps.begun if plain else steps.tokens
    context = steps.context_going if plain else steps.context
    for begin in range(0, len(steps.at) - WINDOW, WINDOW):
        inside = slice(begin + 1, begin + WINDOW + 1)
        took = float(gaps[begin : begin + WINDOW].sum())
        if not busy[begin : begin + WINDOW].all() or took < WINDOW * usual * _SHORTEST:
            continue
        sums = (column[inside].sum() for column in (batch, context, steps.begun, steps.prompts))
        yield (took, *map(float, sums))
