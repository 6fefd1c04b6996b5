"""Mode phase-split: the same prompts first with one output token, then with all, one request at a time.

A part's time is the length of its window divided by its requests, and its energy is what the boards drew in that window. The first part is
prefill; decode is the difference between the two.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

from pd_analysis.energy.part_energy import PartEnergy, energy_of_part
from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.value import Value
from pd_analysis.records.columns import Floats
from pd_analysis.records.run import Run

Phase = Literal["prefill", "decode"]
# If the first token of the second part comes this much sooner than the answer of the first, a cache had the prompt.
CACHED: Final = 0.7


@dataclass(frozen=True)
class PhaseCost:
    """Time and energy of one phase, per request; None is unknown.

    Attributes:
        tokens: of one request: prompt tokens, or output tokens after the first.
        power_w: of all serving boards together, while the phase ran; `idle_w` is what they draw idle.
    """

    phase: Phase
    requests: int
    tokens: float | None
    time_s: Value
    energy_j: Value | None
    power_w: Value | None
    idle_w: float | None

    @property
    def token_j(self) -> Value | None:
        """Joules per token of the phase."""
        return self.energy_j.per(self.tokens) if self.energy_j is not None and self.tokens else None

    @property
    def certain(self) -> bool:
        """False if the time is not larger than its error: then nothing is known about the phase."""
        return self.time_s.value > 2 * self.time_s.error


@dataclass(frozen=True)
class PhaseSplit:
    """Both phases of one run; `cached` if a prefix cache had the prompts of the second part."""

    prefill: PhaseCost
    decode: PhaseCost
    cached: bool


def phase_split(result: Result) -> PhaseSplit | None:
    """The phases of a run of the mode; None if one of its parts has no served request."""
    run = result.run
    served = run.requests.served.sort_values("scheduled")
    short = served[served["requested_output_tokens"] == 1]
    whole = served[served["requested_output_tokens"] != 1]
    if short.empty or whole.empty:
        return None
    first, second = _part(run, short), _part(run, whole)
    more = _more(first, second)
    prompt, output = _mean(short["prompt_tokens"]), _mean(whole["output_tokens"])
    return PhaseSplit(
        prefill=_cost("prefill", first, prompt),
        decode=_cost("decode", more, None if output is None else output - 1),
        cached=float(np.median(whole["ttft"])) < CACHED * float(np.median(short["e2el"])),
    )


@dataclass(frozen=True)
class _Part:
    """One part of the run, or the difference of both: seconds and joules per request."""

    requests: int
    time_s: Value
    latencies: Floats
    energy_j: Value | None
    idle_w: float | None


def _part(run: Run, rows: pd.DataFrame) -> _Part:
    window = float(rows["scheduled"].min()), float(rows["end"].max())
    energy: PartEnergy | None = energy_of_part(run, window)
    latencies = rows["e2el"].to_numpy(dtype=np.float64)
    count, length = len(rows), window[1] - window[0]
    return _Part(
        requests=count,
        time_s=Value(length / count, _standard_error(latencies)),
        latencies=latencies,
        energy_j=None if energy is None else Value(energy.joules, energy.error_j).per(count),
        idle_w=None if energy is None or energy.idle_j is None or length <= 0 else energy.idle_j / length,
    )


def _more(first: _Part, second: _Part) -> _Part:
    """The difference. Both parts have the same prompts in the same order, so that the spread of pairs is smaller than that of either."""
    paired = first.latencies.size == second.latencies.size
    spread = second.latencies - first.latencies if paired else second.latencies
    error = _standard_error(spread) if paired else math.hypot(first.time_s.error, second.time_s.error)
    energy = None
    if first.energy_j is not None and second.energy_j is not None:
        joules = second.energy_j.value - first.energy_j.value
        energy = Value(joules, math.hypot(first.energy_j.error, second.energy_j.error))
    return _Part(
        requests=second.requests,
        time_s=Value(second.time_s.value - first.time_s.value, error),
        latencies=spread,
        energy_j=energy,
        idle_w=second.idle_w,
    )


def _cost(phase: Phase, part: _Part, tokens: float | None) -> PhaseCost:
    power = None
    if part.energy_j is not None and part.time_s.value > 0:
        power = part.energy_j.over(part.time_s)
    return PhaseCost(
        phase=phase,
        requests=part.requests,
        tokens=tokens,
        time_s=part.time_s,
        energy_j=part.energy_j,
        power_w=power,
        idle_w=part.idle_w,
    )


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else float("inf")


def _mean(values: "pd.Series[float]") -> float | None:
    return None if values.isna().any() else float(values.mean())
