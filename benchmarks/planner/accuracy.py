# ruff: noqa: INP001  a script
"""Fitted to runs of two GPUs, or of one, a profile predicts those of four: the tables of docs/planning.md."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import condensed
import msgspec
import numpy as np

from pd_planner.calibrate.errors import Compared, capacities, compare
from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.simulated import outcomes
from pd_planner.traffic.load import Floats
from pd_simulator.profile import Profile, load_profile

OTHER: Final = Path(__file__).with_name("aiconfigurator-0.12.0.json")
METRICS: Final = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "J/token")
_TTFT: Final = 2  # the first of METRICS
_CALM: Final = 0.8  # of the measured capacity
_TTFT_P99: Final = 1
_BLOCK: Final = 10  # requests in a row are drawn together: they met the same queue
_DRAWS: Final = 1000
_DIFFERENT: Final = 0.05
# Where the first seed is the one that every deployment was measured with.
_SEED: Final = 1


@dataclass(frozen=True)
class Carried:
    """What a deployment carried per GPU within the limits, measured and predicted; `other` is aiconfigurator's figure."""

    label: str
    sizes: str
    measured: float
    predicted: float
    other: float

    @property
    def error(self) -> float:
        """Predicted ÷ measured − 1."""
        return self.predicted / self.measured - 1


def carried(compared: Sequence[Compared]) -> list[Carried]:
    """Every deployment and kind of requests, of the seed that all have."""
    said = json.loads(OTHER.read_text(encoding="utf-8")) if OTHER.is_file() else {}
    groups: dict[tuple[str, str], list[Compared]] = {}
    for each in compared:
        if each.run.seed == _SEED:
            groups.setdefault((each.run.label, each.run.sizes), []).append(each)
    found = []
    for (label, sizes), own in sorted(groups.items()):
        shape = shape_of(own[0].run)
        found += [Carried(label, sizes, *pair, said.get(f"{shape} {sizes}", np.nan)) for pair in capacities(own)]
    return found


def shape_of(run: Measured) -> str:
    """3P1D, plain: what another planner tells deployments apart by."""
    return f"{run.engines.prefills}P{run.engines.others}D" if run.engines.prefills else "plain"


def ordered(found: Sequence[Carried]) -> tuple[int, int, int]:
    """Pairs of deployments under the same requests that differ by more than 5%: how many, in the right order here, and there."""
    pairs = here = there = 0
    for one, two in itertools.combinations(found, 2):
        if one.sizes == two.sizes and abs(one.measured / two.measured - 1) > _DIFFERENT:
            pairs += 1
            right = one.measured > two.measured
            here += (one.predicted > two.predicted) == right
            there += (one.other > two.other) == right
    return pairs, here, there


def errors(compared: Sequence[Compared]) -> dict[str, list[float | None]]:
    """Medians of the absolute errors by deployment; TTFT only of runs below 80% of what was carried."""
    found: dict[str, list[float | None]] = {}
    for label in sorted({each.run.label for each in compared}):
        own = [each for each in compared if each.run.label == label]
        limits = {(each.run.sizes, each.run.seed): _calm_until(own, each.run) for each in own}
        calm = np.array([each.run.per_gpu <= limits[each.run.sizes, each.run.seed] for each in own])
        off = np.abs(np.array([each.errors for each in own]))
        off[~calm, :_TTFT] = np.nan
        found[label] = [float(np.nanmedian(row)) if np.isfinite(row).any() else None for row in off.T]
    return found


def p99_intervals(profile: Profile, compared: Sequence[Compared]) -> dict[str, tuple[float, float]]:
    """How far the error of TTFT p99 in `errors` would differ if other requests of the same kind had been measured: 95% of the draws.

    A draw takes as many requests as each run has, in blocks and some of them several times, with what was measured and what is predicted of them.
    """
    found = {}
    for label in sorted({each.run.label for each in compared}):
        own = [each for each in compared if each.run.label == label]
        calm = [each.run for each in own if each.run.per_gpu <= _calm_until(own, each.run)]
        drawn = np.abs([_p99_errors(profile, run, np.random.default_rng(number)) for number, run in enumerate(calm)])
        low, high = np.percentile(np.median(drawn, axis=0), (2.5, 97.5))
        found[label] = (float(low), float(high))
    return found


def _p99_errors(profile: Profile, run: Measured, generator: np.random.Generator) -> Floats:
    """Predicted ÷ measured − 1 in each draw."""
    count = len(run.load)
    begin = generator.integers(0, count, (_DRAWS, -(-count // _BLOCK), 1))
    drawn = ((begin + np.arange(_BLOCK)) % count).reshape(_DRAWS, -1)[:, :count]
    measured, *predictions = (
        np.percentile(ttft[drawn], 99, axis=1)
        for ttft in (run.ttft_ms, *(outcome.ttft_ms for outcome in outcomes(profile, run)))
    )
    return np.asarray(np.mean(predictions, axis=0) / measured - 1)


def _calm_until(own: Sequence[Compared], run: Measured) -> float:
    alike = [each for each in own if (each.run.sizes, each.run.seed) == (run.sizes, run.seed)]
    return _CALM * next((measured for measured, _ in capacities(alike)), 0.0)


def predicted(profile: Profile, wanted: Callable[[Measured], bool] = lambda run: run.gpus == 4) -> list[Compared]:
    """The runs that are wanted, each with its own arrivals."""
    return [compare(profile, run) for run in condensed.runs() if wanted(run)]


def tables() -> Iterator[str]:
    """Markdown: fitted to the runs on two GPUs, predicting those on four; fitted to one GPU; and the runs on one GPU."""
    unseen = predicted(condensed.two_gpus())
    found = carried(unseen)
    yield from _errors(errors(unseen), p99_intervals(condensed.two_gpus(), unseen))
    yield ""
    yield from _capacities(found)
    size = np.abs([each.error for each in found])
    asked = np.abs([each.error for each in found if "1P3D" not in each.label])
    yield ""
    yield (
        f"Capacity: {np.median(size):.1%} off in the median, {size.max():.0%} at worst; without 1P3D, whose one sender to three receivers no pair of GPUs "
        f"shows, {np.median(asked):.1%} and {asked.max():.0%}."
    )
    pairs, here, there = ordered(found)
    beside = f", aiconfigurator {there}" if OTHER.is_file() else ""
    yield f"Pairs of these deployments that differ by more than 5%: pd-plan has {here} of {pairs} in the right order{beside}."
    yield ""
    yield from _of_one()
    yield ""
    yield from _on_one()
    yield ""
    yield from _on_a_pair()


def _of_one() -> Iterator[str]:
    """What a profile of one plain engine says of all others, in a sentence."""
    every = predicted(condensed.one_gpu(), lambda _: True)
    found = carried(every)
    plain = np.abs([each.error for each in found if "combined" in each.label])
    apart = np.abs([each.error for each in found if "combined" not in each.label])
    off = np.array(list(errors(every).values()), np.float64)
    worst = ", ".join(f"{name} {value:.0%}" for name, value in zip(METRICS, np.nanmax(off, axis=0), strict=True))
    pairs, here, _ = ordered(found)
    yield (
        f"Fitted to [one GPU](results/h200x1/README.md) with a later vLLM instead, and with rounded figures of the connectors: capacity {np.median(plain):.0%} off in "
        f"the median for plain engines ({plain.max():.0%} at worst) and {np.median(apart):.0%} ({apart.max():.0%}) for the others, {here} of {pairs} pairs "
        f"of all deployments in the right order; the worst median errors are {worst}."
    )


def _on_one() -> Iterator[str]:
    """The runs on one GPU, each kind of requests predicted by two profiles whose fits have not seen it."""
    yield from _head("one GPU, vLLM 0.33", "predicted by a fit to", "requests/s within the limits", "SIMULATED")
    every = condensed.runs_on_one_gpu()
    for prompt in sorted({int(run.load.prompt[0]) for run in every}):
        own = [run for run in every if run.load.prompt[0] == prompt]
        fits = {
            "four H200, vLLM 0.23": with_launches_of_the_runs(load_profile("h200-llama3-8b")),
            "the other lengths on one H200": load_profile(str(condensed.one_gpu_without(prompt))),
        }
        for name, profile in fits.items():
            yield f"| {own[0].sizes} | {name} | {_row(profile, own)} |"


def with_launches_of_the_runs(shipped: Profile) -> Profile:
    """The shipped profile with launches of vLLM 0.23, which the runs on four GPUs had; then nothing in it is of the runs on one GPU."""
    return msgspec.structs.replace(shipped, launch=condensed.two_gpus().launch)


def _on_a_pair() -> Iterator[str]:
    """The runs of plain engines and of 1P1D on two GPUs, which no fit has seen."""
    yield from _head(
        "two GPUs, vLLM 0.33", "tokens", "predicted by a fit to", "requests/s per GPU within the limits", "SIMULATED"
    )
    fits = {
        "four H200, vLLM 0.23; launches of vLLM 0.33 (shipped)": load_profile("h200-llama3-8b"),
        "one H200, vLLM 0.33": condensed.one_gpu(),
    }
    every = condensed.runs_of_a_pair()
    for label, sizes in sorted({(run.label, run.sizes) for run in every}):
        own = [run for run in every if (run.label, run.sizes) == (label, sizes)]
        for name, profile in fits.items():
            yield f"| {label} | {sizes} | {name} | {_row(profile, own)} |"


def _head(*columns: str) -> Iterator[str]:
    """The head of a table of these columns, of which the last two are numbers, and of the errors."""
    yield f"| {' | '.join([*columns, *METRICS])} |"
    yield "|" + " :--- |" * (len(columns) - 2) + " ---: |" * (2 + len(METRICS))


def _row(profile: Profile, own: Sequence[Measured]) -> str:
    """Capacities and errors of one deployment's runs of one kind of requests."""
    compared = [compare(profile, run) for run in own]
    most = max(run.per_gpu for run in own)
    carry = [f"{'≥ ' * (value >= most)}{value:.2f}" for value in capacities(compared)[0]]
    off = ("–" if value is None else f"{value:.1%}" for value in errors(compared)[own[0].label])
    return " | ".join([*carry, *off])


def _errors(found: dict[str, list[float | None]], intervals: dict[str, tuple[float, float]]) -> Iterator[str]:
    columns = list(METRICS)
    columns.insert(_TTFT_P99 + 1, "its 95% interval")
    yield "| median error, four GPUs | " + " | ".join(columns) + " |"
    yield "| :--- |" + " ---: |" * len(columns)
    for label, row in found.items():
        cells = ["–" if value is None else f"{value:.1%}" for value in row]
        low, high = intervals[label]
        cells.insert(_TTFT_P99 + 1, f"{low * 100:.0f} to {high:.0%}")
        yield f"| {label} | " + " | ".join(cells) + " |"


def _capacities(found: Sequence[Carried]) -> Iterator[str]:
    yield "| requests/s per GPU within the limits | tokens | measured | pd-plan | | aiconfigurator 0.12.0 | |"
    yield "| :--- | :--- | ---: | ---: | ---: | ---: | ---: |"
    for each in found:
        other = "– | –" if np.isnan(each.other) else f"{each.other:.1f} | {each.other / each.measured - 1:+.0%}"
        yield f"| {each.label} | {each.sizes} | {each.measured:.1f} | {each.predicted:.1f} | {each.error:+.1%} | {other} |"
