"""The error of a profile: each run is simulated with its own requests and compared with the measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.simulated import outcomes
from pd_planner.des.deployment import Outcome
from pd_planner.des.limits import Limits
from pd_planner.des.power import watts_by_role
from pd_planner.traffic.load import Floats
from pd_simulator.profile import HeldOut, Profile

QUANTILES: Final = (50, 99)
ATTAINMENT: Final = 0.9


@dataclass(frozen=True)
class Compared:
    """One run: TTFT p50 and p99, TPOT p50 and p99 in milliseconds, and joules per output token (NaN if unknown); measured and simulated.

    `within` is the share of requests within the run's limits, measured and simulated; None where it has none.
    """

    run: Measured
    measured: Floats
    simulated: Floats
    within: tuple[float, float] | None = None

    @property
    def errors(self) -> Floats:
        """Simulated ÷ measured − 1."""
        return np.asarray(self.simulated / self.measured - 1)


def compare(profile: Profile, run: Measured) -> Compared:
    found = outcomes(profile, run)
    roles = set(run.watts)
    tokens = float(run.load.output.sum())
    joules = (
        sum(run.watts[role] * run.engines.boards[role] for role in roles) * run.window_s / tokens if roles else np.nan
    )
    return Compared(
        run,
        np.array([*_quantiles(run.ttft_ms), *_quantiles(run.tpot_ms), joules]),
        np.mean([_simulated(profile, run, outcome) for outcome in found], axis=0),
        _within(run, found),
    )


def _simulated(profile: Profile, run: Measured, outcome: Outcome) -> list[float]:
    seconds = max(run.window_s, float(outcome.last.max()))
    drawn = watts_by_role(profile.power, outcome, run.engines.prefills, seconds)
    joules = sum(drawn[role] for role in run.watts) * seconds / float(run.load.output.sum()) if run.watts else np.nan
    return [*_quantiles(outcome.ttft_ms), *_quantiles(outcome.tpot_ms), joules]


def _within(run: Measured, found: Sequence[Outcome]) -> tuple[float, float] | None:
    if not run.goodput:
        return None
    limits = Limits(run.goodput)
    measured = limits.of({"ttft": run.ttft_ms, "tpot": run.tpot_ms, "e2el": run.e2el_ms})
    return float(measured.mean()), float(np.mean([limits.met(outcome).mean() for outcome in found]))


def capacities(compared: Sequence[Compared], *, seen: bool = False) -> list[tuple[float, float]]:
    """Capacity per GPU of a deployment, measured and simulated, for each kind of requests that was offered at several rates.

    `seen`: only where one of the two falls short at some rate; of what both carry the other ones do not tell how good a prediction is.

    The rate at which the share of requests within the limits falls below 90%, on a line between the rates that were offered; the
    highest of them if it never does.
    """
    kinds: dict[tuple[str, int], list[Compared]] = {}
    for each in compared:
        if each.within is not None and each.run.per_gpu:
            kinds.setdefault((each.run.sizes, each.run.seed), []).append(each)
    found = []
    for kind in kinds.values():
        ordered = sorted(kind, key=lambda each: each.run.per_gpu)
        measured, simulated = (
            _knee([(each.run.per_gpu, each.within[side]) for each in ordered if each.within]) for side in (0, 1)
        )
        if measured and simulated and not (seen and measured == simulated == ordered[-1].run.per_gpu):
            found.append((measured, simulated))
    return found


def _knee(points: Sequence[tuple[float, float]]) -> float | None:
    for (rate, share), (further, less) in pairwise(points):
        if share >= ATTAINMENT > less:
            return rate + (share - ATTAINMENT) / (share - less) * (further - rate)
    return points[-1][0] if len(points) > 1 and points[-1][1] >= ATTAINMENT else None


def _quantiles(values: Floats) -> list[float]:
    known = values[np.isfinite(values)]
    return [float(np.percentile(known, q)) if known.size else np.nan for q in QUANTILES]


def held_out_of(compared: Sequence[Compared]) -> HeldOut:
    """Medians of the absolute errors; `compared` holds at least one run, all of one deployment."""
    errors = np.abs(np.array([each.errors for each in compared]))
    medians = [float(np.nanmedian(column)) if np.isfinite(column).any() else None for column in errors.T]
    carried = [abs(simulated / measured - 1) for measured, simulated in capacities(compared, seen=True)]
    engines = compared[0].run.engines
    names = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "joules_per_token", "capacity")
    found = (*medians, float(np.median(carried)) if carried else None)
    return HeldOut(
        runs=len(compared),
        prefills=engines.prefills,
        others=engines.others,
        connector=engines.connector,
        batched=engines.batched,
        **{name: round(value, 4) for name, value in zip(names, found, strict=True) if value is not None},
    )
