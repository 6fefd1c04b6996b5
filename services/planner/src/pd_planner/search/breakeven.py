"""Where the answer flips: prefill and decode apart ÷ plain, over prompt and answer lengths; and both over rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pd_planner.search.candidates import Candidate
from pd_planner.search.capacity import ROUGH, Care, Setting, capacity
from pd_planner.search.fleet import Fleet, Operation, operate
from pd_planner.traffic.load import Load

PROMPTS: Final = (128, 256, 512, 1024, 2048, 4096, 8192)
OUTPUTS: Final = (16, 32, 64, 128, 256, 512, 1024)
RATES: Final = tuple(share / 100 for share in range(10, 121, 10))  # of the larger capacity
_REQUESTS: Final = 1200
_MAP: Final = Care(20.0, 0.03)


@dataclass(frozen=True)
class Point:
    """One pair of lengths: what plain engines and the best split carry per GPU, and that split; 0 is nothing within the limits."""

    prompt: int
    output: int
    plain: float
    apart: float
    split: Candidate | None

    @property
    def ratio(self) -> float:
        """Apart ÷ plain; NaN where neither carries anything, infinite where only apart does."""
        if self.plain:
            return self.apart / self.plain
        return float("inf") if self.apart else float("nan")


def splits(like: Candidate) -> list[Candidate]:
    """Every XpYd of as many engines with the same connector."""
    engines = like.prefills + like.others
    return [replace(like, prefills=prefills, others=engines - prefills) for prefills in range(1, engines)]


def break_even(setting: Setting, like: Candidate) -> list[Point]:
    """The map, with `like`'s number of engines and connector, within the same limits for all lengths."""
    return [_point(setting, like, prompt, output) for prompt in PROMPTS for output in OUTPUTS]


def _point(setting: Setting, like: Candidate, prompt: int, output: int) -> Point:
    at = setting.traffic.load.at[:_REQUESTS]
    load = Load.of(at, prompt, output)
    sized = replace(setting, traffic=replace(setting.traffic, load=load, shared=()))
    plain = Candidate(0, like.prefills + like.others, None, like.tensor_parallel)
    able = [each for each in (plain, *splits(like)) if not each.engines(setting.engine).refusal(prompt, output)]
    carried = {each: capacity(sized, each, care=ROUGH) / each.gpus for each in able}
    best = max((each for each in able if not each.plain), key=lambda each: carried[each], default=None)
    for each in (plain, best):
        if each is not None and carried.get(each):
            carried[each] = capacity(sized, each, carried[each] * each.gpus, _MAP) / each.gpus
    return Point(prompt, output, carried.get(plain, 0.0), carried.get(best, 0.0) if best else 0.0, best)


@dataclass(frozen=True)
class Curve:
    """One fleet over rates."""

    fleet: Fleet
    operations: list[Operation]


def over_rates(setting: Setting, fleets: Sequence[Fleet]) -> list[Curve]:
    """Fleets at the same rates per GPU, from a tenth of what the strongest carries to beyond it."""
    most = max(fleet.per_gpu for fleet in fleets)
    return [
        Curve(fleet, [operate(setting, fleet, float(share * most * fleet.gpus)) for share in np.array(RATES)])
        for fleet in fleets
    ]
