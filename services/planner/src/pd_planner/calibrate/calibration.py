"""The whole calibration: steps, hand-over, power. It is repeated on each half of the runs, to measure the error on the other half."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from pd_analysis.words.language import ntr, tr
from pd_planner.calibrate.errors import Compared, compare, held_out_of
from pd_planner.calibrate.gauss_newton import Estimate, fit, free_numbers
from pd_planner.calibrate.measured import CalibrationError, Measured
from pd_planner.calibrate.power import fit_power
from pd_planner.calibrate.step_numbers import DECODE, StepNumbers, step_numbers
from pd_planner.profile.guards import remarks
from pd_planner.profile.numbers import changed
from pd_simulator.profile import Profile, Provenance, Spread

Say = Callable[[str], None]
_FEWEST_RUNS: Final = 2


@dataclass(frozen=True)
class Calibration:
    """A profile with its held-out comparison: every run, simulated by a profile that was fitted without it."""

    profile: Profile
    estimate: Estimate
    steps: StepNumbers
    compared: list[Compared]
    odd: list[str]


def calibrate(start: Profile, runs: Sequence[Measured], say: Say = lambda _: None) -> Calibration:
    """Fit all numbers that the runs determine; `start` gives the others, and the prior.

    Raises:
        CalibrationError: if the runs are too few, or a fitted number is physically impossible.
    """
    if len(runs) < _FEWEST_RUNS:
        raise CalibrationError(
            ntr(
                "{count} usable run: too few to fit a profile and to hold some out",
                "{count} usable runs: too few to fit a profile and to hold some out",
                len(runs),
            )
        )
    say(tr("fitting to {count} runs", count=len(runs)))
    profile, estimate, steps = fitted(start, runs)
    odd = remarks(profile)
    if impossible := [remark.sentence for remark in odd if remark.impossible]:
        raise CalibrationError("; ".join(impossible))
    compared = []
    for number, (seen, unseen) in enumerate(folds(runs), 1):
        say(
            tr(
                "held out, part {number}: fitting to {seen} runs, predicting {unseen}",
                number=number,
                seen=len(seen),
                unseen=len(unseen),
            )
        )
        partial, _, _ = fitted(start, seen)
        compared += [compare(partial, run) for run in unseen]
    profile = msgspec.structs.replace(profile, provenance=provenance(runs, compared), spread=spread(estimate, steps))
    return Calibration(profile, estimate, steps, compared, [remark.sentence for remark in odd])


def fitted(start: Profile, runs: Sequence[Measured]) -> tuple[Profile, Estimate, StepNumbers]:
    """Fit the steps first, then the clients' latencies, then power."""
    steps = step_numbers(start, runs)
    estimate = fit(start, steps, runs, free_numbers(runs))
    profile = steps.put(changed(start, estimate.as_dict()))
    return fit_power(profile, runs), estimate, steps


def folds(runs: Sequence[Measured]) -> list[tuple[list[Measured], list[Measured]]]:
    """Two halves, each deployment's rates in turn; each half is predicted from the other."""
    halves: tuple[list[Measured], list[Measured]] = ([], [])
    counts: dict[tuple[str, str, int], int] = {}
    for run in sorted(runs, key=lambda run: run.per_gpu):
        key = (run.label, run.sizes, run.seed)
        counts[key] = counts.get(key, -1) + 1
        halves[counts[key] % 2].append(run)
    even, odd = halves
    return [(even, odd), (odd, even)] if even and odd else []


def provenance(runs: Sequence[Measured], compared: Iterable[Compared]) -> Provenance:
    """Where the profile comes from."""
    by_label: dict[str, list[Compared]] = {}
    for each in compared:
        by_label.setdefault(each.run.label, []).append(each)
    return Provenance(
        kind="simulated" if any(run.simulated for run in runs) else "measured",
        model=", ".join(sorted({run.model for run in runs})),
        engine=", ".join(sorted({run.engine for run in runs})),
        runs=len(runs),
        requests=sum(len(run.load) for run in runs),
        prompt_tokens=(
            min(int(run.load.prompt.min()) for run in runs),
            max(int(run.load.prompt.max()) for run in runs),
        ),
        output_tokens=(
            min(int(run.load.output.min()) for run in runs),
            max(int(run.load.output.max()) for run in runs),
        ),
        fitted=sorted({run.label for run in runs}),
        held_out={label: held_out_of(each) for label, each in sorted(by_label.items())},
    )


def spread(estimate: Estimate, steps: StepNumbers) -> Spread:
    """The covariance of the numbers: those of the fit, and those of the steps, which the fit took as given."""
    names, blocks = list(estimate.names), [estimate.covariance]
    for role, found in steps.fits.items():
        size = len(DECODE)
        values = found.values[:size]
        names += [f"{role}.{name}" for name in DECODE]
        blocks.append(found.covariance[:size, :size] / np.outer(values, values))
    covariance = np.zeros((len(names), len(names)))
    begin = 0
    for block in blocks:
        covariance[begin : begin + len(block), begin : begin + len(block)] = block
        begin += len(block)
    rounded = [[float(f"{value:.3g}") for value in row] for row in covariance]
    return Spread(names, rounded)
