"""Gauss–Newton on the logarithms of a profile's numbers. The residuals are ratios of latency quantiles, for numbers that token stamps do not show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.simulated import outcomes
from pd_planner.calibrate.step_numbers import StepNumbers
from pd_planner.des.deployment import Outcome
from pd_planner.profile.numbers import changed, is_per_token, number
from pd_planner.traffic.load import Floats
from pd_simulator.profile import Profile

_ROUNDS: Final = 15
_STEP: Final = 0.05  # of a number's logarithm, for the slope
_LARGEST_STEP: Final = 0.7
_OUTLIER: Final = 2.0  # residuals above this many times the usual one count for less
_USUAL: Final = (0.02, 0.1)  # bounds of what is usual
_PRIOR_SD: Final = 0.5  # of the logarithm: the prior is the start profile, within a factor of 1.6
_ENOUGH: Final = 1e-3  # of the loss
_DAMPING: Final = (0.0, 1.0, 10.0, 100.0)
# A number that is 0 in the start profile begins with this, or with a thousandth of it a token …
_SEED_MS: Final = 0.5
# … and this one, which profiles without runs of its connector leave out, with about what a lone short prompt takes beyond the cost of a further
# one (docs/results/h200: 22 ms without `api_ms` and the tail, and about 15). Begun at 5 to 20 ms, the predictions hardly differ.
_SEEDS_MS: Final[Mapping[str, float]] = {"handoff.P2pNcclConnector.send_floor_per_step_ms": 10.0}
TTFT: Final = ((50, 1.0), (90, 0.7), (99, 0.7))  # percentile, weight
ANSWERED: Final = ((50, 0.7), (90, 0.7))
TPOT: Final = ((50, 1.0), (90, 0.7))


@dataclass(frozen=True)
class Estimate:
    """Numbers, and the covariance of their logarithms in the order of `names`."""

    names: tuple[str, ...]
    values: Floats
    covariance: Floats

    def as_dict(self) -> dict[str, float]:
        return dict(zip(self.names, map(float, self.values), strict=True))


def residuals(profile: Profile, run: Measured) -> Floats:
    """Logarithms of simulated over measured, weighted: time to first token; prefill's answer where it is known; of plain engines, which compute
    prompts between the tokens of other answers, the time per token."""
    return np.asarray(np.mean([_residuals(outcome, run) for outcome in outcomes(profile, run)], axis=0), np.float64)


def _residuals(outcome: Outcome, run: Measured) -> list[float]:
    found = _ratios(outcome.ttft_ms, run.ttft_ms, TTFT)
    if not run.part and np.isfinite(run.tpot_ms).all():
        found += _ratios(outcome.tpot_ms, run.tpot_ms, TPOT)
    if np.isfinite(run.answered_ms).all():
        answered = (outcome.answered - run.load.at) * 1e3
        found += _ratios(answered, run.answered_ms, ANSWERED)
    return found


def _ratios(simulated: Floats, measured: Floats, quantiles: Sequence[tuple[int, float]]) -> list[float]:
    return [weight * float(np.log(np.percentile(simulated, q) / np.percentile(measured, q))) for q, weight in quantiles]


@dataclass(frozen=True)
class _Problem:
    """A fit: the numbers' names, the runs, and which runs each number affects."""

    names: tuple[str, ...]
    runs: Sequence[Measured]
    start: Profile
    steps: StepNumbers

    def profile(self, logs: Floats) -> Profile:
        return self.steps.put(changed(self.start, dict(zip(self.names, map(float, np.exp(logs)), strict=True))))

    def all(self, logs: Floats) -> list[Floats]:
        profile = self.profile(logs)
        return [residuals(profile, run) for run in self.runs]

    def slopes(self, logs: Floats, here: Sequence[Floats]) -> Floats:
        columns = []
        for position, name in enumerate(self.names):
            moved = logs.copy()
            moved[position] += _STEP
            profile = self.profile(moved)
            columns.append(
                np.concatenate(
                    [
                        (residuals(profile, run) - now) / _STEP if _touches(name, run) else np.zeros(len(now))
                        for run, now in zip(self.runs, here, strict=True)
                    ]
                )
            )
        return np.column_stack(columns)


def _touches(name: str, run: Measured) -> bool:
    part, _, _ = name.rpartition(".")
    if part == "mixed":
        return not run.part
    if name in _SHOWN_BY_SEVERAL_SENDERS and run.engines.prefills == 1:
        return False
    return part == run.part or not part.startswith(("handoff", "batched"))


def fit(start: Profile, steps: StepNumbers, runs: Sequence[Measured], names: Sequence[str]) -> Estimate:
    """Fit the named numbers, beginning with the start profile's; these also count as a prior, within a factor of 1.6."""
    problem = _Problem(tuple(names), runs, start, steps)
    prior = np.log([number(start, name) or _seed(name) for name in names])
    logs, here = prior, problem.all(prior)
    precision = np.eye(len(names))
    for _ in range(_ROUNDS):
        flat, slopes = np.concatenate(here), problem.slopes(logs, here)
        usual = float(np.clip(1.48 * np.median(np.abs(flat)), *_USUAL))
        weights = np.minimum(1.0, _OUTLIER * usual / np.maximum(np.abs(flat), 1e-9)) / usual**2
        precision = slopes.T @ (slopes * weights[:, None]) + np.eye(len(names)) / _PRIOR_SD**2
        pull = slopes.T @ (weights * flat) + (logs - prior) / _PRIOR_SD**2
        before = loss = _loss(here, logs - prior, usual)
        for damping in _DAMPING:
            step = np.linalg.solve(precision + damping * np.diag(np.diag(precision)), pull)
            tried = logs - np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
            there = problem.all(tried)
            if (tried_loss := _loss(there, tried - prior, usual)) < loss:
                logs, here, loss = tried, there, tried_loss
                break
        if loss > before * (1 - _ENOUGH):
            break
    return Estimate(tuple(names), np.exp(logs), np.asarray(np.linalg.inv(precision), np.float64))


def _seed(name: str) -> float:
    return _SEEDS_MS.get(name, _SEED_MS * (1e-3 if is_per_token(name) else 1.0))


def _loss(found: Sequence[Floats], away: Floats, usual: float) -> float:
    """Huber loss plus that of the prior."""
    size = np.abs(np.concatenate(found)) / usual
    far = _OUTLIER * (size - _OUTLIER / 2)
    return float(np.where(size < _OUTLIER, size**2 / 2, far).sum() + (away**2).sum() / 2 / _PRIOR_SD**2)


def free_numbers(runs: Sequence[Measured]) -> list[str]:
    """The numbers that these runs determine, besides those of the steps."""
    several = len({int(np.median(run.load.prompt)) for run in runs}) > 1
    names = ["api_ms", "prefill.base_ms", "prefill.per_token_ms"] if several else ["api_ms", "prefill.per_token_ms"]
    if any(not run.part for run in runs):
        names += ["mixed.overlap_ms", "mixed.prefill_token_share"] if several else ["mixed.overlap_ms"]
    for part in sorted({run.part for run in runs if run.part}):
        peers = any(run.engines.others > 1 for run in runs if run.part == part)
        names += [f"{part}.{key}" for key in _HANDOFF[part] if several or not is_per_token(key)]
        if part == "handoff.P2pNcclConnector" and peers:
            names.append(f"{part}.send_floor_per_peer_ms")
    return names


_HANDOFF: Final[Mapping[str, tuple[str, ...]]] = {
    "handoff.P2pNcclConnector": (
        "send_floor_per_step_ms",
        "send_floor_ms",
        "send_tail_ms",
        "receive_ms",
        "receive_per_token_ms",
    ),
    "batched": ("send_tail_ms", "wait_ms", "receive_ms", "receive_per_token_ms"),
    "handoff.NixlConnector": ("wait_ms", "wait_per_token_ms", "receive_ms", "receive_per_token_ms"),
    "handoff.P2pConnector": ("at_once_ms", "at_once_per_token_ms", "first_token_ms"),
    "handoff.ExampleConnector": ("send_tail_ms", "send_tail_per_token_ms"),
}
# How long a receiver takes. A single sender's own time per request hides it, and a fit that moves both makes up for other errors with it: then
# where it begins decides what comes out. So runs with one sender leave these numbers as they are.
_SHOWN_BY_SEVERAL_SENDERS: Final = frozenset(
    f"handoff.P2pNcclConnector.{key}" for key in ("receive_ms", "receive_per_token_ms")
)
