"""The capacity of a deployment: the highest rate at which enough requests are within the limits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pd_planner.des.deployment import Outcome, round_robin, simulate
from pd_planner.des.limits import Limits
from pd_planner.des.routed import adaptive
from pd_planner.profile.numbers import beside_ms
from pd_planner.search.candidates import Candidate, EngineLimits
from pd_planner.traffic.load import Load
from pd_planner.traffic.prefix import cached_tokens
from pd_planner.traffic.source import Traffic
from pd_simulator.profile import Profile

SECONDS: Final = 60.0  # of load in each simulation, if the traffic has as much


@dataclass(frozen=True)
class Care:
    """How carefully a capacity is found: seconds of load, and the share of the rate to which it is found."""

    seconds: float
    precision: float


CAREFUL: Final = Care(SECONDS, 0.01)
ROUGH: Final = Care(15.0, 0.05)
# Until the first answers end, batches are smaller than later. Requests of this time, and of a tenth of the load at least, do not count, and a
# load lasts several times as long.
_WARM_UP, _LONGEST_WARM_UP = 0.1, 0.5
_STAYS: Final = 4.0
_PART: Final = 0.25  # of the load, simulated first: it may already miss the limits
_LOWEST: Final = 1e-3  # of a cell's upper bound; a lower capacity counts as none


@dataclass(frozen=True)
class Setting:
    """What all candidates have in common; `processors` as `simulate` takes it. `known` is the profile that a proxy would be given, if it is not this one."""

    profile: Profile
    traffic: Traffic
    limits: Limits
    engine: EngineLimits
    prefix_caching: bool = False
    processors: int = 0
    known: Profile | None = None

    def seconds(self, least: float) -> float:
        """How long a load has to be: `least`, or several times as long as a request stays while the limits are just kept."""
        decode, milliseconds = self.profile.decode, self.limits.milliseconds
        full = decode.base_ms + decode.per_sequence_ms * self.engine.max_num_seqs
        stay_s = float(self.traffic.load.output.mean()) * milliseconds.get("tpot", full) / 1e3
        return max(least, _STAYS * min(stay_s, milliseconds.get("e2el", np.inf) / 1e3))


def run(setting: Setting, candidate: Candidate, rate: float, seconds: float = SECONDS) -> Outcome:
    """Simulate one cell of a candidate at a rate."""
    return _simulated(setting, candidate, setting.traffic.at(rate, setting.seconds(seconds)))


def _simulated(setting: Setting, candidate: Candidate, load: Load) -> Outcome:
    engines = candidate.engines(setting.engine)
    if candidate.adaptive:
        routed = adaptive(
            setting.profile,
            engines,
            load,
            setting.limits.objectives,
            known=setting.known,
            processors=setting.processors,
        )
        return routed.outcome
    route = round_robin(engines, len(load))
    if setting.prefix_caching and setting.traffic.shared and candidate.can_cache:
        computing = route.other if candidate.plain else route.prefill
        shared = setting.traffic.shared[: len(load)]
        load = replace(load, cached=cached_tokens(load, shared, computing, setting.engine.kv_tokens))
    return simulate(setting.profile, engines, load, route, setting.processors)


def steady(outcome: Outcome) -> slice:
    """The requests that count: those that come when the first answers have ended."""
    at, count = outcome.load.at, len(outcome.first)
    filled = int(np.searchsorted(at, float(np.median(outcome.last - at))))
    return slice(min(max(int(count * _WARM_UP), filled), int(count * _LONGEST_WARM_UP)), None)


def attainment(setting: Setting, candidate: Candidate, rate: float, seconds: float = SECONDS) -> float:
    """Share of requests within all limits at a rate."""
    load = setting.traffic.at(rate, setting.seconds(seconds))
    early = _simulated(setting, candidate, load.first(max(2, int(len(load) * _PART))))
    share = float(setting.limits.met(early)[steady(early)].mean())
    if (
        1 - _PART * (1 - share) < setting.limits.attainment
    ):  # even if all other requests were in time, it would not be enough
        return share
    outcome = _simulated(setting, candidate, load)
    return float(setting.limits.met(outcome)[steady(outcome)].mean())


def capacity(setting: Setting, candidate: Candidate, guess: float | None = None, care: Care = CAREFUL) -> float:
    """Requests per second that one cell carries within the limits; 0 if it carries none. A `guess` makes the search shorter."""

    def carries(rate: float) -> bool:
        return attainment(setting, candidate, rate, care.seconds) >= setting.limits.attainment

    most = upper_bound(setting, candidate)
    low, high = _bracket(carries, guess or most, 1.25 if guess else 4.0, most)
    while high - low > care.precision * high:
        middle = (low + high) / 2
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low


def _bracket(carries: Callable[[float], bool], guess: float, factor: float, most: float) -> tuple[float, float]:
    """A rate that is carried and one that is not; (0, 0) if none is.

    A load of few short requests is carried at any rate: all of it is served at once within the limits. No cell carries `most` for
    long, so the search ends there.
    """
    if carries(guess):
        while guess < most and carries(guess * factor):
            guess *= factor
        return min(guess, most), min(guess * factor, most)
    lowest = guess * _LOWEST
    while guess > lowest:
        if carries(guess / factor):
            return guess / factor, guess
        guess /= factor
    return 0.0, 0.0


def upper_bound(setting: Setting, candidate: Candidate) -> float:
    """An upper bound on what a cell can do under any limits: every engine does nothing but compute prompts and full batches of decodes."""
    profile, load = setting.profile, setting.traffic.load
    prompt, output = float(load.prompt.mean()), float(load.output.mean())
    prompt_ms = _least_prompt_ms(setting, candidate)
    decode = profile.decode if candidate.apart else (profile.combined or profile.decode)
    context = prompt + output / 2
    batch = min(setting.engine.max_num_seqs, max(1.0, setting.engine.kv_tokens / (prompt + output)))
    decode_ms = output * (decode.base_ms / batch + decode.per_sequence_ms + decode.per_context_token_ms * context)
    if not candidate.apart:
        return 1.2e3 * candidate.others / (prompt_ms + decode_ms)
    return 1.2e3 * min(candidate.prefills / max(prompt_ms, 1e-6), candidate.others / max(decode_ms, 1e-6))


def _least_prompt_ms(setting: Setting, candidate: Candidate) -> float:
    """What computing a prompt takes at least: alone in a step, whose overlap it then has for itself; nothing if it may be in a cache."""
    profile, prompt = setting.profile, float(setting.traffic.load.prompt.mean())
    if setting.prefix_caching and setting.traffic.shared and candidate.can_cache:
        return 0.0
    alone_ms = profile.prefill.per_token_ms * prompt
    if candidate.apart:
        return alone_ms
    return min(alone_ms, beside_ms(profile, prompt)) if candidate.adaptive else beside_ms(profile, prompt)


def percentiles(outcome: Outcome) -> dict[str, float]:
    """TTFT and TPOT p50 and p99 in milliseconds, over the requests that count; NaN where none has it."""
    counted = steady(outcome)
    found = {}
    for name, values in (("ttft", outcome.ttft_ms[counted]), ("tpot", outcome.tpot_ms[counted])):
        known = values[np.isfinite(values)]
        for percent in (50, 99):
            found[f"{name}_p{percent}"] = float(np.percentile(known, percent)) if known.size else float("nan")
    return found
