"""When requests are sent: computed before the start, so that a slow server cannot slow the load down.

Offsets are seconds from the start of the window, sorted. They follow from seed, rate and duration alone and are not rescaled: a
Poisson draw of 100 expected arrivals may hold 93, as at a real door; the report shows drawn and achieved rate.
"""

import math
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Arrival(StrEnum):
    """How gaps between requests are drawn."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"


def arrivals(*, rate: float, duration: float, seed: int, arrival: Arrival, burstiness: float = 1.0) -> list[float]:
    """Offsets below `duration`.

    Args:
        rate: requests a second in the long run.
        duration: seconds.
        seed: equal seeds give equal offsets, on every machine.
        arrival: poisson has exponential gaps; constant has equal ones, the first request at 0.
        burstiness: shape of gamma gaps: 1 is Poisson, below it comes in bursts, far above it is constant.
    """
    if arrival is Arrival.CONSTANT:
        return [number / rate for number in range(math.ceil(duration * rate)) if number / rate < duration]
    rng = random.Random(f"arrivals:{seed}")  # text, because it seeds alike in every process
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


def shard(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """The part of a schedule that worker `index` of `count` sends; the parts together are the schedule, each item once.

    Raises:
        ValueError: if there is no such worker.
    """
    if not 0 <= index < count:
        msg = f"there is no worker {index} of {count}"
        raise ValueError(msg)
    return items[index::count]
