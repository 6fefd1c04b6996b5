"""When requests are sent: computed before the start, so that a slow server cannot slow the load down.

Offsets are seconds from the start of the window, sorted. They follow from seed, rate and duration alone and are not rescaled: a
Poisson draw of 100 expected arrivals may hold 93, as in real traffic; the report shows drawn and achieved rate. Two arrivals have
no such schedule: a closed loop sends when an answer has come, and a replay takes its offsets from a trace (`traces`).
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import count, islice, takewhile
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
    most: int | None = None,
) -> list[float]:
    """Offsets below `duration`, the first `most` of them.

    Args:
        rate: requests per second in the long run; of ramp and step, at the end.
        duration: seconds; infinite only with `most`, and not for ramp and step.
        seed: equal seeds give equal offsets, on every machine.
        arrival: poisson has exponential gaps; constant has equal ones, the first request at 0; ramp and step are Poisson with a
            rate that grows, in a line or in `steps` equal parts of the duration, from `start_rate`.
        burstiness: shape of gamma gaps: 1 is Poisson, below it comes in bursts, far above it is constant.
        start_rate: requests per second at the start of a ramp, or in its first step.
        steps: rates of a staircase, at least 2.
        most: maximum number of offsets.

    Raises:
        ValueError: for closed and replay, which have no schedule of this kind, and for what has no end.
    """
    rising = arrival in (Arrival.RAMP, Arrival.STEP)
    if math.isinf(rate) or (math.isinf(duration) and (rising or most is None)):
        msg = f"{rate:g} requests per second for {duration:g} s do not make a schedule"
        raise ValueError(msg)
    if rising:
        offsets = _stretched(_generator(seed), *_rise(arrival, rate, duration, start_rate=start_rate, steps=steps))
    else:
        offsets = takewhile(lambda offset: offset < duration, _steady(arrival, rate, seed, burstiness))
    return list(islice(offsets, most))


def _steady(arrival: Arrival, rate: float, seed: int, burstiness: float) -> Iterator[float]:
    """Offsets without end at one rate."""
    if arrival not in (Arrival.POISSON, Arrival.GAMMA, Arrival.CONSTANT):
        msg = f"arrival {arrival} has no schedule from a rate"
        raise ValueError(msg)
    shape = burstiness if arrival is Arrival.GAMMA else 1.0
    if arrival is Arrival.CONSTANT or math.isinf(shape):
        yield from (number / rate for number in count())
    rng = _generator(seed)
    now = 0.0
    while True:
        now += _gap(rng, rate, shape)
        yield now


def _rise(
    arrival: Arrival, rate: float, duration: float, *, start_rate: float, steps: int
) -> tuple[float, Callable[[float], float]]:
    """The number of arrivals expected in all, and a function that says when a given number is expected to have come."""
    if arrival is Arrival.RAMP:
        return (start_rate + rate) / 2 * duration, _ramp(start_rate, rate, duration)
    rates = [start_rate + (rate - start_rate) * number / (steps - 1) for number in range(steps)]
    return sum(rates) * duration / steps, _staircase(rates, duration / steps)


def _generator(seed: int) -> random.Random:
    return random.Random(f"arrivals:{seed}")  # text, because it seeds alike in every process


def _gap(rng: random.Random, rate: float, shape: float) -> float:
    if shape == 1.0:
        return -math.log(1.0 - rng.random()) / rate
    return rng.gammavariate(shape, 1.0 / (rate * shape))


def _stretched(rng: random.Random, expected: float, when: Callable[[float], float]) -> Iterator[float]:
    """A Poisson process of changing rate: one of rate 1, each arrival moved to when that many are expected to have come."""
    come = _gap(rng, 1.0, 1.0)
    while come < expected:
        yield when(come)
        come += _gap(rng, 1.0, 1.0)


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
