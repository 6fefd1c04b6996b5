"""Draws: profiles with numbers drawn within their uncertainty, faster and slower processors, and other arrivals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np

from pd_planner.cores import spread
from pd_planner.profile.numbers import changed, number
from pd_planner.search.candidates import Candidate
from pd_planner.search.capacity import Care, Setting, capacity
from pd_planner.search.fleet import operate
from pd_planner.search.question import Choice, Objective
from pd_simulator.profile import Profile

DRAWS: Final = 30
SEED: Final = 20_261
_WIDEST: Final = 1.0  # of a number's logarithm: a factor of e
_ENGINES: Final = 8
_JOULES_SD: Final = 0.03
# Of the logarithm: launching a step took 21.9 to 26.3 ms in the mean on four hosts with the same vLLM, boards and processors.
_HOSTS_SD: Final = 0.08
_PROCESSORS: Final = 1000
_CARE: Final = Care(30.0, 0.02)  # one draw is a sample
# Adaptive roles take a hundred times as long to simulate: less of it, and one draw in three, but five at least.
_ADAPTIVE: Final = "adaptive"
_CARE_OF_ROLES: Final = Care(20.0, 0.05)
_ONE_IN, _FEWEST = 3, 5
_BAND: Final = (5, 50, 95)


@dataclass(frozen=True)
class Band:
    """The 5th, 50th and 95th percentile over the draws."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Band":
        return cls(*map(float, np.percentile(values, _BAND)))


@dataclass(frozen=True)
class Drawn:
    """One choice over all draws, or over the first ones if its roles are adaptive: capacity per GPU and, where energy is asked for, joules per token.

    Draw n has the same numbers and arrivals for all choices.
    """

    choice: Choice
    per_gpu: tuple[float, ...]
    joules: tuple[float, ...]

    @property
    def band(self) -> Band:
        return Band.of(self.per_gpu)

    @property
    def simulated(self) -> Candidate:
        """The part of the choice that the draws are of."""
        return simulated(self.choice)

    def first(self, draws: int) -> "Drawn":
        """Over the first draws alone."""
        return Drawn(self.choice, self.per_gpu[:draws], self.joules[:draws])


def draw(setting: Setting, choices: Sequence[Choice], objective: Objective, draws: int = DRAWS) -> list[Drawn]:
    """Each choice over so many draws."""
    found = spread(lambda index: _draw(setting, choices, objective, index, draws), range(draws))
    return [
        Drawn(
            choice,
            tuple(one[position].per_gpu for one in found if position in one),
            tuple(joules for one in found if position in one and (joules := one[position].joules) is not None),
        )
        for position, choice in enumerate(choices)
    ]


@dataclass(frozen=True)
class _Sample:
    """One choice in one draw; joules only where energy is asked for."""

    per_gpu: float
    joules: float | None


def _draw(
    setting: Setting, choices: Sequence[Choice], objective: Objective, index: int, draws: int
) -> dict[int, _Sample]:
    """The draw of this number: the sample of each choice, by its position. The first ones, with adaptive roles, take longest."""
    generator, own = np.random.default_rng((SEED, index)), np.random.default_rng((SEED, index, 1))
    drawn = _setting(setting, generator)
    fixed = {_kind(choice) for choice in choices if not choice.adaptive}
    errors = {key: float(generator.normal()) for key in sorted(fixed)} | {_ADAPTIVE: float(own.normal())}
    found: dict[int, _Sample] = {}
    for position, choice in enumerate(choices):
        if choice.adaptive and index >= adaptive_draws(draws):
            continue
        candidate, care = simulated(choice), _CARE_OF_ROLES if choice.adaptive else _CARE
        off = np.exp(choice.doubt * errors[_kind(choice)])
        expected = choice.fleet.per_gpu * candidate.gpus
        carried = float(capacity(drawn, candidate, expected, care) * off / candidate.gpus)
        joules = None
        if objective is Objective.ENERGY:
            operation = operate(drawn, choice.fleet, choice.operation.rate)
            error = (own if choice.adaptive else generator).normal(0.0, _JOULES_SD)
            joules = operation.joules * float(np.exp(error))
        found[position] = _Sample(carried, joules)
    return found


def adaptive_draws(draws: int) -> int:
    """In how many of them adaptive roles are simulated."""
    return max(min(draws, _FEWEST), round(draws / _ONE_IN))


def _kind(choice: Choice) -> str:
    """The group of deployments that share a model error: plain engines, those of one connector, or those with adaptive roles."""
    return _ADAPTIVE if choice.adaptive else choice.fleet.candidate.connector or "plain"


def simulated(choice: Choice) -> Candidate:
    """The part of a choice that is simulated: one cell, or several plain engines, because they may differ."""
    candidate = choice.fleet.candidate
    engines = choice.fleet.cells * candidate.others
    return replace(candidate, others=min(engines, _ENGINES)) if candidate.plain else candidate


def _setting(setting: Setting, generator: np.random.Generator) -> Setting:
    return replace(
        setting,
        profile=_on_another_host(_profile(setting.profile, generator), generator),
        traffic=setting.traffic.redrawn(generator),
        processors=int(generator.integers(1, _PROCESSORS)),
        known=setting.profile,  # what a proxy is given is the profile, not the truth
    )


def _on_another_host(profile: Profile, generator: np.random.Generator) -> Profile:
    """The same board beside a faster or a slower processor."""
    launch, factor = profile.launch, float(np.exp(generator.normal(0.0, _HOSTS_SD)))
    slower = msgspec.structs.replace(launch, ms=[value * factor for value in launch.ms])
    return msgspec.structs.replace(profile, launch=slower)


def _profile(profile: Profile, generator: np.random.Generator) -> Profile:
    """Numbers drawn from their covariance."""
    spread = profile.spread
    if spread is None:
        return profile
    logs = generator.multivariate_normal(np.zeros(len(spread.names)), np.array(spread.covariance), method="eigh")
    factors = np.exp(np.clip(logs, -_WIDEST, _WIDEST))
    return changed(
        profile, {name: number(profile, name) * float(f) for name, f in zip(spread.names, factors, strict=True)}
    )
