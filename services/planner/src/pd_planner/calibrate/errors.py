"""How far a profile is off: each run simulated with its own requests, beside what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pd_planner.calibrate.runs import Measured
from pd_planner.des.deployment import simulate
from pd_planner.des.power import watts_by_role
from pd_planner.traffic.load import Floats
from pd_simulator.profile import HeldOut, Profile

QUANTILES: Final = (50, 99)


@dataclass(frozen=True)
class Compared:
    """One run: TTFT p50 and p99, TPOT p50 and p99 in milliseconds, and joules an output token (NaN if unknown); measured and simulated."""

    run: Measured
    measured: Floats
    simulated: Floats

    @property
    def errors(self) -> Floats:
        """Simulated ÷ measured − 1."""
        return np.asarray(self.simulated / self.measured - 1)


def compare(profile: Profile, run: Measured) -> Compared:
    """Simulate a run."""
    outcome = simulate(profile, run.engines, run.load, run.route)
    seconds = max(run.window_s, float(outcome.last.max()))
    drawn = watts_by_role(profile.power, outcome, run.engines.prefills, seconds)
    tokens = float(run.load.output.sum())
    roles = set(run.watts)
    boards = run.engines.boards
    joules = sum(run.watts[role] * boards[role] for role in roles) * run.window_s / tokens if roles else np.nan
    guessed = sum(drawn[role] for role in roles) * seconds / tokens if roles else np.nan
    return Compared(
        run,
        np.array([*_quantiles(run.ttft_ms), *_quantiles(run.tpot_ms), joules]),
        np.array([*_quantiles(outcome.ttft_ms), *_quantiles(outcome.tpot_ms), guessed]),
    )


def _quantiles(values: Floats) -> list[float]:
    known = values[np.isfinite(values)]
    return [float(np.percentile(known, q)) if known.size else np.nan for q in QUANTILES]


def held_out_of(compared: Sequence[Compared]) -> HeldOut:
    """Medians of the absolute errors; `compared` holds at least one run."""
    errors = np.abs(np.array([each.errors for each in compared]))
    medians = [float(np.nanmedian(column)) if np.isfinite(column).any() else None for column in errors.T]
    return HeldOut(len(compared), *(round(value, 4) if value is not None else None for value in medians))
