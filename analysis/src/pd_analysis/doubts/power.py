"""Why joules may be wrong: what was not recorded, boards without a role, counters and readings that disagree."""

from collections.abc import Iterable, Sequence
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.energy.window import Energy, GpuEnergy
from pd_analysis.numbers.evaluation import Result
from pd_analysis.words.formatting import listed, number, percent, plural

CLOSURE_LIMIT: Final = 0.03
FIT_LEAST: Final = 0.5
COUNTER_LEAST_S: Final = 5.0  # about 50 updates of a board's counter: below, its steps are more than 2 % of the window


def power(result: Result) -> Iterable[Doubt]:
    """Everything that is doubtful about a run's energy."""
    energy = result.energy
    if energy is None:
        yield Doubt(
            Level.CARE,
            f"{result.name}: no power was recorded, so energy is unknown.",
            "Start pd-monitor and give its address to pd-loadgen with --monitor.",
            "No power was recorded, so energy is unknown",
        )
    elif energy.uncovered_s:
        yield Doubt(
            Level.CARE,
            f"{result.name}: power was not recorded for {number(energy.uncovered_s)} s of the measured window, so energy is unknown.",
            "Let the recording begin before the load and end after it; if it ran on another host, set both clocks by NTP.",
            "Power was not recorded for all of the measured window, so energy is unknown",
        )
    else:
        yield from _boards(result, energy)
        yield from _readings(result.name, energy.serving)
        yield from _split(result)


def _boards(result: Result, energy: Energy) -> Iterable[Doubt]:
    serving, expected = len(energy.serving), result.metrics.gpus
    if not serving:
        yield Doubt(
            Level.CARE,
            f"{result.name}: no recorded GPU has a role, so energy is not divided by role.",
            "Tell pd-monitor the roles: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS.",
            "No recorded GPU has a role, so energy is not divided by role",
        )
    elif expected and serving != expected:
        yield Doubt(
            Level.CARE,
            f"{result.name}: power was recorded for {plural(serving, 'GPU')} with a role, but the deployment has {expected}.",
            "Give every GPU of the deployment its role: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS.",
            "Power was recorded for another number of GPUs than the deployment has",
        )
    if energy.window_s < COUNTER_LEAST_S:
        yield Doubt(
            Level.CARE,
            f"{result.name}: the measured window of {number(energy.window_s)} s is short for an energy counter that moves about every 100 ms.",
            f"Measure for {COUNTER_LEAST_S:.0f} s or more (--duration).",
            "A short window for an energy counter that moves about every 100 ms",
        )


def _split(result: Result) -> Iterable[Doubt]:
    for role in result.attribution:
        if role.r2 is not None and role.r2 < FIT_LEAST:
            yield Doubt(
                Level.CARE,
                f"{result.name}: the fit explains only {percent(max(role.r2, 0.0))} of what the energy of combined GPUs did, so its split between prefill and decode is a guess.",
                "Offer a load that varies, for longer; the energy of both together is measured.",
            )


def _readings(name: str, gpus: Sequence[GpuEnergy]) -> Iterable[Doubt]:
    integrated = [f"GPU {gpu.index}" for gpu in gpus if gpu.method == "integral"]
    if integrated:
        yield Doubt(
            Level.CARE,
            f"{name}: {listed(integrated)} had no usable energy counter; the energy is the integral of power.",
            "Compare it only with runs on the same board and by the same method.",
            "No usable energy counter; the energy is the integral of power",
        )
    open_ = [f"GPU {gpu.index} {percent(gpu.closure)}" for gpu in gpus if abs(gpu.closure or 0) > CLOSURE_LIMIT]
    if open_:
        yield Doubt(
            Level.CARE,
            f"{name}: neither power reading agrees with the energy counter ({listed(open_)}; limit {percent(CLOSURE_LIMIT)}).",
            "Trust the counter, and look at the power timeline for holes; a longer window makes the edges matter less.",
            "Neither power reading agrees with the energy counter",
        )
    slowed = [
        f"GPU {gpu.index} {reason} in {percent(share)} of samples"
        for gpu in gpus
        for reason, share in gpu.throttled.items()
    ]
    if slowed:
        yield Doubt(
            Level.CARE,
            f"{name}: GPUs ran slower than their clocks allow ({listed(slowed)}).",
            "Check cooling and power limit (nvidia-smi -q -d PERFORMANCE); compare runs with the same limits.",
            "GPUs ran slower than their clocks allow",
        )
