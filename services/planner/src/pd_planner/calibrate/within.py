"""What was measured, within or outside the bands of what a profile predicts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pd_analysis.tables.table import Cell, Table, table
from pd_analysis.words.formatting import number
from pd_analysis.words.language import tr
from pd_planner.calibrate.errors import Compared, compare
from pd_planner.calibrate.measured import Measured
from pd_planner.calibrate.simulated import served
from pd_planner.des.limits import Limits
from pd_planner.profile.trust import Shape, Trust, trust
from pd_simulator.profile import HeldOut, Profile

METRICS: Final = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "J/token")
_FIELDS: Final = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "joules_per_token")
# A band is this many times the median error of runs that the profile did not see, and at least this wide.
_TIMES: Final = 3.0
_LEAST: Final = (0.15, 0.30, 0.05, 0.10, 0.05)
_UNTRIED: Final = {Trust.CALIBRATED: 0.0, Trust.UNCALIBRATED: 0.40, Trust.ANALYTIC: 0.25, Trust.UNKNOWN: 0.25}
# Near saturation small differences make long queues: above this share of the capacity TTFT is not checked.
_CALM: Final = 0.8
_FEWEST_P99: Final = 100
_TTFT: Final = (0, 1)


@dataclass(frozen=True)
class Checked:
    """One metric of one run; `band` is the largest relative difference that is within."""

    run: Measured
    metric: str
    measured: float
    simulated: float
    band: float

    @property
    def inside(self) -> bool:
        """Whether the prediction holds."""
        return abs(self.simulated / self.measured - 1) <= self.band


def shape_of(run: Measured) -> Shape:
    """The properties of a run's deployment that decide how far a profile can be trusted."""
    engines = run.engines
    adaptive = run.objectives is not None
    return Shape(engines.prefills, engines.others, engines.connector, engines.batched, adaptive=adaptive)


def comparable(runs: Sequence[Measured], shapes: Collection[tuple[bool, Shape]]) -> list[Measured]:
    """The runs whose deployment is among `shapes`; of plain and adaptive engines their number does not matter."""
    kinds = {shape for plain, shape in shapes if not plain}
    plain = any(plain for plain, _ in shapes)
    adaptive = any(shape.adaptive for shape in kinds)
    fixed = {True: plain, False: adaptive}
    return [run for run in runs if (shape_of(run) in kinds if run.engines.prefills else fixed[run.objectives is None])]


def checked(profile: Profile, runs: Sequence[Measured]) -> list[Checked]:
    """Every metric of every run."""
    return [each for run in runs for each in _checked(profile, run)]


def _checked(profile: Profile, run: Measured) -> list[Checked]:
    found = compare(profile, run)
    calm = _is_calm(profile, run)
    return [
        Checked(run, METRICS[number], float(found.measured[number]), float(found.simulated[number]), band)
        for number, band in enumerate(_bands(profile, run))
        if _counts(found, number, calm=calm)
    ]


def _counts(found: Compared, number: int, *, calm: bool) -> bool:
    if not np.isfinite(found.measured[number]) or (number in _TTFT and not calm):
        return False
    return not METRICS[number].endswith("p99") or len(found.run.load) >= _FEWEST_P99


def _bands(profile: Profile, run: Measured) -> list[float]:
    shape = shape_of(run)
    known, _ = trust(profile, shape)
    near = [
        one for one in (profile.provenance.held_out if profile.provenance else {}).values() if shape.covered_by(one)
    ]
    return [
        max(least, _UNTRIED[known], _TIMES * _worst(near, field)) for least, field in zip(_LEAST, _FIELDS, strict=True)
    ]


def _worst(near: Sequence[HeldOut], field: str) -> float:
    return max((error for one in near if (error := getattr(one, field)) is not None), default=0.0)


def _is_calm(profile: Profile, run: Measured) -> bool:
    """Whether the deployment would still keep its limits were the same requests to come a quarter faster."""
    if not run.goodput:
        return True
    faster = replace(run.load, at=run.load.at * _CALM)
    return float(Limits(run.goodput).met(served(profile, run, faster)).mean()) >= Limits({}).attainment


def table_of(found: Sequence[Checked]) -> Table:
    """One line per metric and run."""
    rows = [_row(each) for each in found]
    header = (
        tr("deployment"),
        tr("tokens"),
        tr("req/s per GPU"),
        tr("metric"),
        tr("measured"),
        tr("SIMULATED"),
        tr("difference"),
        "",
    )
    return table(tr("Predicted and measured"), header, rows, {0, 1, 3, 7})


def _row(each: Checked) -> list[str | Cell]:
    difference = f"{each.simulated / each.measured - 1:+.1%} (±{each.band:.0%})"
    told = Cell(tr("inside"), "better") if each.inside else Cell(tr("OUTSIDE"), "worse")
    words = [each.run.label, each.run.sizes, number(each.run.per_gpu), each.metric]
    return [*words, number(each.measured), number(each.simulated), difference, told]


def summary(found: Sequence[Checked]) -> str:
    inside = sum(each.inside for each in found)
    runs = {each.run.path for each in found}
    whole = [path for path in runs if all(each.inside for each in found if each.run.path == path)]
    return tr(
        "{inside} of {values} values inside their bands; {whole} of {runs} runs with all of theirs",
        inside=inside,
        values=len(found),
        whole=len(whole),
        runs=len(runs),
    )
