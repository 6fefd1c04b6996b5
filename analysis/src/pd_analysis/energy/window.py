"""Joules of the measured window, by GPU and by role.

Energy is the difference of the board's own counter, interpolated between the two samples around each edge of the window. The
integrals of both power readings are computed too: instantaneous power misses what lies between samples, and the board's average blurs
the edges. If neither comes near the counter, the board's readings are not plausible (`checks`) and it has no energy. For a board
without a counter the integral of its average power is used; `method` says so.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

from pd_analysis.energy.boards import astray, idle_fault, roles_apart, worked
from pd_analysis.energy.checks import Fault, believable, faults_of
from pd_analysis.energy.moments import clock_shift, idle_stretches
from pd_analysis.energy.readings import (
    AVERAGE_LAG_S,
    CLOSURE_LIMIT,
    Window,
    closure,
    counter_j,
    integral_j,
    interval_of,
)
from pd_analysis.records.run import Run
from pd_contracts.clock_events import CLOCK_EVENTS, SLOWDOWNS
from pd_contracts.names import Role

Method = Literal["counter", "integral"]

UPDATE_S: Final = 0.1  # of the boards' counters


@dataclass(frozen=True)
class GpuEnergy:
    """One board over the measured window; None is unknown.

    Attributes:
        method: how `energy_j` was found; None with it.
        integral_j: under instantaneous power.
        average_j: under the board's own average of power.
        idle_w: its lowest median power over stretches without a request; None if the recording has none.
        throttled: share of the window's samples with a throttling bit, by reason.
        busy: mean share of the window in which a kernel ran.
        faults: checks that its readings failed; it then has no energy.
        edges_j: what one update of the counter at either end of the window can make; None without a counter.
    """

    index: int
    name: str
    role: Role | None
    method: Method | None
    energy_j: float | None
    counter_j: float | None
    integral_j: float | None
    average_j: float | None
    mean_w: float | None
    peak_w: float | None
    idle_w: float | None
    throttled: Mapping[str, float]
    busy: float | None = None
    faults: tuple[Fault, ...] = ()
    edges_j: float | None = None

    @property
    def error_j(self) -> float | None:
        """How far the energy may be off: by the ends of the window, or by what its power readings say otherwise if that is more."""
        bounds = self.bounds_j
        if self.edges_j is None or self.energy_j is None or bounds is None:
            return None
        return max(self.edges_j, self.energy_j - bounds[0], bounds[1] - self.energy_j)

    @property
    def closure(self) -> float | None:
        """Integral / counter − 1, of the power reading that comes nearer to the counter; None without a counter or power."""
        closures = [
            found
            for joules in (self.integral_j, self.average_j)
            if (found := closure(joules, self.counter_j)) is not None
        ]
        return min(closures, key=abs, default=None)

    @property
    def bounds_j(self) -> tuple[float, float] | None:
        """The least and the most joules by its own readings: the counter's, and the power's where it disagrees; None without energy."""
        if self.energy_j is None:
            return None
        apart = self.closure or 0.0
        other = self.energy_j * (1 + apart) if abs(apart) > CLOSURE_LIMIT else self.energy_j
        return min(self.energy_j, other), max(self.energy_j, other)


@dataclass(frozen=True)
class Energy:
    """All boards of a run over its measured window.

    Attributes:
        shift_s: what maps the recorder's clock to the client's.
        roles_apart: boards that were recorded with another role than their engine's; if not 0, no energy is given by role.
        astray: boards of the deployment that were not recorded, and recorded ones with a role that are not the deployment's; if not 0, the
            recorded joules are not the deployment's, and no sum of them is given.
    """

    window_s: float
    gpus: tuple[GpuEnergy, ...]
    shift_s: float
    astray: int = 0
    roles_apart: int = 0

    @property
    def roles(self) -> list[Role]:
        """The roles that have a board."""
        return [role for role in Role if any(gpu.role is role for gpu in self.gpus)]

    def of(self, role: Role) -> float | None:
        """Joules of a role; None if it has no board, one of its boards is unknown, or boards are astray or of other roles."""
        return (
            None
            if self.astray or self.roles_apart
            else total_of([gpu.energy_j for gpu in self.gpus if gpu.role is role])
        )

    @property
    def serving(self) -> tuple[GpuEnergy, ...]:
        """The boards with a role; others were recorded and served nothing."""
        return tuple(gpu for gpu in self.gpus if gpu.role is not None)

    @property
    def total_j(self) -> float | None:
        """Joules of all boards that serve; None as in `of`."""
        return None if self.astray else total_of([gpu.energy_j for gpu in self.serving])

    @property
    def bounds_share(self) -> tuple[float, float]:
        """The least and the most that the boards' own readings allow, as shares of `total_j`; 1 and 1 if it is unknown."""
        bounds = [gpu.bounds_j for gpu in self.serving]
        known = [bound for bound in bounds if bound is not None]
        if not self.total_j or len(known) < len(bounds):
            return 1.0, 1.0
        return sum(least for least, _ in known) / self.total_j, sum(most for _, most in known) / self.total_j

    def idle_j(self, roles: Collection[Role]) -> float | None:
        """The static part: what the roles' boards would have drawn idle; None if one was never seen idle."""
        idle = total_of([gpu.idle_w for gpu in self.gpus if gpu.role in roles])
        return None if idle is None else idle * self.window_s


@dataclass(frozen=True)
class TokenEnergy:
    """Joules per token. A role's tokens are those it works for: prompt for prefill, output for decode, both for combined."""

    prefill_per_prompt: float | None
    decode_per_output: float | None
    combined_per_token: float | None
    per_output: float | None
    per_token: float | None
    parts_per_output: Mapping[Role, float]


def energy_of(run: Run, window: Window | None = None) -> Energy | None:
    """Energy of a run's boards, over its measured window or another one; None if no power was recorded."""
    if run.gpu is None or run.samples.empty:
        return None
    shift = clock_shift(run.gpu.clock, run.manifest.clock)
    samples = run.samples.assign(t=run.samples["t"] + shift)
    window = window or run.window
    scene = _Scene(run, window, idle_stretches(run.requests.rows, *_span(samples)), worked(run, window))
    gpus = tuple(_gpu(scene, int(str(index)), own) for index, own in samples.groupby("index"))
    serving = {gpu.index: gpu.role for gpu in gpus if gpu.role is not None}
    return Energy(
        window_s=window[1] - window[0],
        gpus=gpus,
        shift_s=shift,
        astray=astray(run, serving),
        roles_apart=roles_apart(run, serving),
    )


def per_token(energy: Energy, prompt_tokens: int | None, output_tokens: int | None) -> TokenEnergy:
    """Divide by tokens of successful requests; None where either side is unknown."""
    both = None if prompt_tokens is None or output_tokens is None else prompt_tokens + output_tokens
    parts = {role: _share(energy.of(role), output_tokens) for role in energy.roles}
    return TokenEnergy(
        prefill_per_prompt=_share(energy.of(Role.PREFILL), prompt_tokens),
        decode_per_output=_share(energy.of(Role.DECODE), output_tokens),
        combined_per_token=_share(energy.of(Role.COMBINED), both),
        per_output=_share(energy.total_j, output_tokens),
        per_token=_share(energy.total_j, both),
        parts_per_output={role: part for role, part in parts.items() if part is not None},
    )


@dataclass(frozen=True)
class _Scene:
    """What holds for all boards: the window, stretches without a request, and roles whose engines worked in the window."""

    run: Run
    window: Window
    idle: Sequence[Window]
    worked: Collection[Role]


def _span(samples: pd.DataFrame) -> Window:
    return float(samples["t"].min()), float(samples["t"].max())


def _gpu(scene: _Scene, index: int, samples: pd.DataFrame) -> GpuEnergy:
    header, window = scene.run.gpu, scene.window
    info = next((gpu for gpu in header.gpus if gpu.index == index), None) if header else None
    interval_s = interval_of(samples, header.interval_s if header else 0.0)
    limit_w = info.power_limit_w if info else None
    inside = samples[samples["t"].between(*window)]
    counter = counter_j(samples, window, interval_s)
    integral = integral_j(samples, "power_w", window, interval_s)
    average = integral_j(samples, "power_average_w", window, interval_s, lag=AVERAGE_LAG_S)
    faults = faults_of(samples, window, interval_s, limit_w, scene.idle)
    role = str(samples["role"].iloc[0])
    idle_w = _idle_w(samples, scene.idle, limit_w)
    if role in scene.worked and (fault := idle_fault(inside, window, idle_w)) is not None:
        faults = (*faults, fault)
    energy, method = (None, None) if faults else _chosen(counter, integral if average is None else average)
    seconds = window[1] - window[0]
    return GpuEnergy(
        index=index,
        name=info.name if info else "",
        role=Role(role) if role else None,
        method=method,
        energy_j=energy,
        counter_j=counter,
        integral_j=integral,
        average_j=average,
        mean_w=None if energy is None or seconds <= 0 else energy / seconds,
        peak_w=_peak(inside),
        idle_w=idle_w,
        throttled=_throttled(inside),
        busy=None if inside["utilization"].isna().all() else float(inside["utilization"].mean()),
        faults=faults,
        edges_j=edges_j(energy / seconds) if energy is not None and method == "counter" and seconds > 0 else None,
    )


def edges_j(mean_w: float) -> float:
    """What one update of the counter at either end of a window can make at a mean power."""
    return math.sqrt(2) * UPDATE_S * mean_w


def _chosen(counter: float | None, integral: float | None) -> tuple[float | None, Method | None]:
    if counter is not None:
        return counter, "counter"
    return integral, None if integral is None else "integral"


def _peak(inside: pd.DataFrame) -> float | None:
    power = inside["power_w"].fillna(inside["power_average_w"]).dropna()
    return None if power.empty else float(power.max())


def _idle_w(samples: pd.DataFrame, idle: Sequence[Window], limit_w: float | None) -> float | None:
    power = samples["power_w"].where(believable(samples, "power_w", limit_w))
    power = power.fillna(samples["power_average_w"].where(believable(samples, "power_average_w", limit_w)))
    medians = [float(power[samples["t"].between(*stretch)].median()) for stretch in idle]
    known = [median for median in medians if not np.isnan(median)]
    return min(known, default=None)


def _throttled(inside: pd.DataFrame) -> dict[str, float]:
    bits = inside["throttle_reasons"].dropna().astype("int64")
    shares = (
        {words: float(((bits & CLOCK_EVENTS[name]) != 0).mean()) for name, words in SLOWDOWNS.items()}
        if len(bits)
        else {}
    )
    return {reason: share for reason, share in shares.items() if share > 0}


def total_of(values: Sequence[float | None]) -> float | None:
    """The sum; None if a value is unknown or there are no values."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _share(joules: float | None, tokens: int | None) -> float | None:
    return None if joules is None or not tokens else joules / tokens
