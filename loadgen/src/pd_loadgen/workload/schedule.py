"""When requests are sent: computed before the start, so that a slow server cannot slow the load down.

Offsets are seconds from the start of the window, sorted. They follow from seed, rate and duration alone and are not rescaled: a
Poisson draw of 100 expected arrivals may hold 93, as at a real door; the report shows drawn and achieved rate. Two arrivals are
none of these: a closed loop sends when an answer has come, and a replay has its offsets from a trace (`traces`).
"""

import math
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Arrival(StrEnum):
    """How gaps between requests are drawn."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"
    RAMP = "ramp"
    STEP = "step"
    CLOSED = "closed"
    REPLAY = "replay"


def arrivals(
    *,
    rate: float,
    duration: float,
    seed: int,
    arrival: Arrival,
    burstiness: float = 1.0,
    start_rate: float = 0.0,
    steps: int = 4,
) -> list[float]:
    """Offsets below `duration`.

    Args:
        rate: requests a second in the long run; of ramp and step, at the end.
        duration: seconds.
        seed: equal seeds give equal offsets, on every machine.
        arrival: poisson has exponential gaps; constant has equal ones, the first request at 0; ramp and step are Poisson with a
            rate that grows, in a line or in `steps` equal parts of the duration, from `start_rate`.
        burstiness: shape of gamma gaps: 1 is Poisson, below it comes in bursts, far above it is constant.
        start_rate: requests a second at the start of a ramp, or in its first step.
        steps: rates of a staircase, at least 2.

    Raises:
        ValueError: for closed and replay, which have no schedule of this kind.
    """
    if arrival is Arrival.CONSTANT:
        return [number / rate for number in range(math.ceil(duration * rate)) if number / rate < duration]
    rng = random.Random(f"arrivals:{seed}")  # text, because it seeds alike in every process
    if arrival is Arrival.RAMP:
        return _stretched(rng, (start_rate + rate) / 2 * duration, _ramp(start_rate, rate, duration))
    if arrival is Arrival.STEP:
        rates = [start_rate + (rate - start_rate) * number / (steps - 1) for number in range(steps)]
        return _stretched(rng, sum(rates) * duration / steps, _staircase(rates, duration / steps))
    if arrival not in (Arrival.POISSON, Arrival.GAMMA):
        msg = f"arrival {arrival} has no schedule from a rate"
        raise ValueError(msg)
    shape = burstiness if arrival is Arrival.GAMMA else 1.0
    offsets: list[float] = []
    now = _gap(rng, rate, shape)
    while now < duration:
        offsets.append(now)
        now += _gap(rng, rate, shape)
    return offsets


def _gap(rng: random.Random, rate: float, shape: float) -> float:
    if shape == 1.0:
        return -math.log(1.0 - rng.random()) / rate
    return rng.gammavariate(shape, 1.0 / (rate * shape))


def _stretched(rng: random.Random, expected: float, when: Callable[[float], float]) -> list[float]:
    """A Poisson process of changing rate: one of rate 1, each arrival moved to when that many are expected to have come."""
    offsets: list[float] = []
    count = _gap(rng, 1.0, 1.0)
    while count < expected:
        offsets.append(when(count))
        count += _gap(rng, 1.0, 1.0)
    return offsets


def _ramp(start: float, end: float, duration: float) -> Callable[[float], float]:
    """When `count` arrivals are expected: start t + slope t² / 2 = count, in the form that also holds for a slope of 0."""
    slope = (end - start) / duration
    return lambda count: 2 * count / (start + math.sqrt(max(0.0, start * start + 2 * slope * count)))


def _staircase(rates: Sequence[float], length: float) -> Callable[[float], float]:
    def when(count: float) -> float:
        for number, rate in enumerate(rates):
            if count < rate * length:
                return number * length + count / rate
            count -= rate * length
        return len(rates) * length

    return when


def shard(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """The part of a schedule that worker `index` of `count` sends; the parts together are the schedule, each item once.

    Raises:
        ValueError: if there is no such worker.
    """
    if not 0 <= index < count:
        msg = f"there is no worker {index} of {count}"
        raise ValueError(msg)
    return items[index::count]
