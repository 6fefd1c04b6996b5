"""Why joules may be wrong: what was not recorded, boards without a role, counters and readings that disagree."""

from collections.abc import Iterable, Sequence
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.doubts.readings import unbelieved
from pd_analysis.energy.joules import Energy, GpuEnergy
from pd_analysis.energy.readings import CLOSURE_LIMIT
from pd_analysis.numbers.evaluation import Result, gpus_words
from pd_analysis.numbers.load import MODES
from pd_analysis.words.formatting import listed, number, percent
from pd_analysis.words.language import tr

FIT_LEAST: Final = 0.5
COUNTER_LEAST_S: Final = 5.0  # about 50 updates of a board's counter: below, its steps are more than 2% of the window


def power(result: Result) -> Iterable[Doubt]:
    """All doubts about a run's energy."""
    energy = result.energy
    if energy is None:
        yield Doubt(
            Level.CARE,
            tr("{run}: no power was recorded, so energy is unknown.", run=result.name),
            tr("Start pd-monitor and give its address to pd-loadgen with --monitor."),
            tr("No power was recorded, so energy is unknown"),
        )
    else:
        yield from _boards(result, energy)
        yield from _window(result, energy)
        yield from unbelieved(result.name, energy.serving)
        yield from _readings(result.name, energy.serving)
        if result.load.pace not in MODES:
            yield from _split(result)


def _boards(result: Result, energy: Energy) -> Iterable[Doubt]:
    """Whether the recorded GPUs and their roles are those of the deployment."""
    serving, expected = len(energy.serving), result.metrics.gpus
    if not serving:
        yield Doubt(
            Level.CARE,
            tr("{run}: no recorded GPU has a role, so energy is not divided by role.", run=result.name),
            tr("Tell pd-monitor the roles: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS."),
            tr("No recorded GPU has a role, so energy is not divided by role"),
        )
    elif energy.astray:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: power was recorded for {recorded} with a role, but not for exactly the {expected} of the deployment, so its energy is unknown.",
                run=result.name,
                recorded=gpus_words(serving),
                expected=expected or "?",
            ),
            tr("Record every GPU of the deployment, each with its role: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS."),
            tr("Power was not recorded for exactly the GPUs of the deployment, so energy is unknown"),
        )
    elif energy.roles_apart:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: {recorded} was recorded with another role than that of its engine, so energy by role is unknown.",
                run=result.name,
                recorded=gpus_words(energy.roles_apart),
            ),
            tr("Tell pd-monitor the roles: PREFILL_GPUS, DECODE_GPUS, COMBINED_GPUS."),
            tr("GPUs were recorded with another role than that of their engines, so energy by role is unknown"),
        )


def _window(result: Result, energy: Energy) -> Iterable[Doubt]:
    if energy.window_s < COUNTER_LEAST_S:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: the measured window of {window} s is short for an energy counter that moves about every 100 ms.",
                run=result.name,
                window=number(energy.window_s),
            ),
            tr("Measure for {least} s or more (--duration).", least=f"{COUNTER_LEAST_S:.0f}"),
            tr("A short window for an energy counter that moves about every 100 ms"),
        )


def _split(result: Result) -> Iterable[Doubt]:
    for role in result.attribution:
        if role.r2 is not None and role.r2 < FIT_LEAST:
            yield Doubt(
                Level.CARE,
                tr(
                    "{run}: the fit explains only {share} of the variation in the energy of the combined GPUs, so the split between prefill and decode is a guess.",
                    run=result.name,
                    share=percent(max(role.r2, 0.0)),
                ),
                tr("Offer a varying load for longer; the energy of both phases together is measured."),
                tr(
                    "The fit explains little of the variation in the energy of the combined GPUs, so the split by phase is a guess"
                ),
            )


def _readings(name: str, gpus: Sequence[GpuEnergy]) -> Iterable[Doubt]:
    integrated = [f"GPU {gpu.index}" for gpu in gpus if gpu.method == "integral"]
    if integrated:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: {integrated} had no usable energy counter; the energy is the integral of power.",
                run=name,
                integrated=listed(integrated),
            ),
            tr("Compare it only with runs on the same board and by the same method."),
            tr("No usable energy counter; the energy is the integral of power"),
        )
    believed = [gpu for gpu in gpus if not gpu.faults]
    open_ = [f"GPU {gpu.index} {percent(gpu.closure)}" for gpu in believed if abs(gpu.closure or 0) > CLOSURE_LIMIT]
    if open_:
        yield Doubt(
            Level.CARE,
            tr(
                "{run}: neither power reading agrees with the energy counter ({open}; limit {limit}).",
                run=name,
                open=listed(open_),
                limit=percent(CLOSURE_LIMIT),
            ),
            tr("Look for gaps in the power timeline; in a longer window its ends matter less."),
            tr("Neither power reading agrees with the energy counter"),
        )
    slowed = [
        tr("GPU {index} {reason} in {share} of samples", index=gpu.index, reason=tr(reason), share=percent(share))
        for gpu in gpus
        for reason, share in gpu.throttled.items()
    ]
    if slowed:
        yield Doubt(
            Level.CARE,
            tr("{run}: GPUs ran slower than their clocks allow ({slowed}).", run=name, slowed=listed(slowed)),
            tr("Check cooling and power limit (nvidia-smi -q -d PERFORMANCE); compare runs with the same limits."),
            tr("GPUs ran slower than their clocks allow"),
        )
