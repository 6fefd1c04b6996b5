"""Where the answer flips: separate prefill and decode ÷ plain, over prompt and answer lengths; and both over rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pd_planner.cores import spread
from pd_planner.search.candidates import Candidate
from pd_planner.search.capacity import ROUGH, SECONDS, Care, Setting, attainment, capacity, upper_bound
from pd_planner.search.fleet import Fleet, Operation, operate
from pd_planner.traffic.load import Load

PROMPTS: Final = (128, 256, 512, 1024, 2048, 4096, 8192)
OUTPUTS: Final = (16, 32, 64, 128, 256, 512, 1024)
RATES: Final = tuple(share / 100 for share in range(10, 121, 10))  # of the larger capacity
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
    lengths = [(prompt, output) for prompt in PROMPTS for output in OUTPUTS]
    return spread(lambda both: _point(setting, like, *both), lengths)


def _point(setting: Setting, like: Candidate, prompt: int, output: int) -> Point:
    load = Load.of(setting.traffic.load.at, prompt, output)
    sized = replace(setting, traffic=replace(setting.traffic, load=load, shared=()))
    plain = Candidate(0, like.prefills + like.others, None, like.tensor_parallel)
    able = [each for each in (plain, *splits(like)) if not each.engines(setting.engine).refusal(prompt, output)]
    best, most = _best_split(sized, [each for each in able if not each.plain])
    together = capacity(sized, plain, care=ROUGH) if plain in able else 0.0
    return Point(prompt, output, _per_gpu(sized, plain, together), _per_gpu(sized, best or plain, most), best)


def _best_split(setting: Setting, able: Sequence[Candidate]) -> tuple[Candidate | None, float]:
    """The split that roughly carries most, and how much. The capacity of others is not looked for once they are seen to carry less."""
    best, most = None, 0.0
    for each in sorted(able, key=lambda each: -upper_bound(setting, each)):
        if best is not None and upper_bound(setting, each) <= most:
            break
        if most and attainment(setting, each, most, ROUGH.seconds) < setting.limits.attainment:
            continue
        carried = capacity(setting, each, most or None, ROUGH)
        if best is None or carried > most:
            best, most = each, carried
    return best, most


def _per_gpu(setting: Setting, candidate: Candidate, roughly: float) -> float:
    """Requests per second per GPU, more carefully."""
    return capacity(setting, candidate, roughly, _MAP) / candidate.gpus if roughly else 0.0


def _seconds(fleet: Fleet) -> float:
    """Adaptive roles take long to simulate."""
    return _MAP.seconds if fleet.candidate.adaptive else SECONDS


@dataclass(frozen=True)
class Curve:
    """One fleet over rates."""

    fleet: Fleet
    operations: list[Operation]


def over_rates(setting: Setting, fleets: Sequence[Fleet]) -> list[Curve]:
    """Fleets at the same rates per GPU, from a tenth of what the strongest carries to beyond it."""
    most = max(fleet.per_gpu for fleet in fleets)
    points = [(fleet, share) for fleet in fleets for share in RATES]

    def operated(point: tuple[Fleet, float]) -> Operation:
        fleet, share = point
        return operate(setting, fleet, share * most * fleet.gpus, _seconds(fleet))

    # Adaptive roles take longest, and most at high rates: they come last in the list, and first here.
    found = spread(operated, points[::-1])[::-1]
    return [Curve(fleet, found[n * len(RATES) : (n + 1) * len(RATES)]) for n, fleet in enumerate(fleets)]
