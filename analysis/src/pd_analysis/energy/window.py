"""Joules of the measured window, by GPU and by role.

Energy is the difference of the board's own counter, interpolated between the two samples around each edge of the window. The
integrals of both power readings are computed too: instantaneous power misses what lies between samples, and the board's average blurs
the edges. If neither comes near the counter, the board's readings are not plausible (`checks`) and it has no energy. For a board
without a counter the integral of its average power is used; `method` says so.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pd_analysis.energy.boards import astray, idle_fault, roles_apart, worked
from pd_analysis.energy.checks import believable, faults_of
from pd_analysis.energy.joules import Energy, GpuEnergy, Method
from pd_analysis.energy.moments import clock_shift, idle_stretches
from pd_analysis.energy.readings import AVERAGE_LAG_S, Window, counter_j, integral_j, interval_of
from pd_analysis.records.run import Run
from pd_contracts.clock_events import CLOCK_EVENTS, SLOWDOWNS
from pd_contracts.names import Role

UPDATE_S: Final = 0.1  # of the boards' counters


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
