"""Joules and watts, by role and by GPU."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from pd_analysis.energy.checks import Check
from pd_analysis.energy.joules import Energy, GpuEnergy, TokenEnergy, total_of
from pd_analysis.energy.readings import closure
from pd_analysis.numbers.evaluation import ROLES, Group
from pd_analysis.tables.table import Table, table
from pd_analysis.words.formatting import DASH, joined, number, percent, with_error
from pd_analysis.words.formulas import defined
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

_METHODS: Final = {"counter": mark("counter"), "integral": mark("integral")}
_FAULTS: Final = {
    Check.UNREAD: mark("readings missing"),
    Check.IMPOSSIBLE: mark("impossible power"),
    Check.JUMP: mark("counter jumped"),
    Check.STILL: mark("counter did not move"),
    Check.DISAGREE: mark("counter and power disagree"),
    Check.STUCK: mark("power did not change"),
    Check.IDLE: mark("idle while its engine worked"),
}


def energy_by_role(group: Group) -> Table | None:
    """Joules by role; None if no run has power."""
    header = [
        *("", tr("GPUs"), tr("Energy"), tr("Mean power per GPU"), tr("Static part"), tr("J / prompt token")),
        *(tr("J / output token"), tr("J / token, both"), tr("Closure, instant"), tr("Closure, average"), tr("Method")),
    ]
    rows = [
        row
        for result in group.results
        if result.energy is not None and result.tokens is not None
        for row in _role_rows(result.name, result.energy, result.tokens)
    ]
    caption = tr(
        "{definitions} The energy of a role is divided by the tokens that it processes; that of all GPUs by output tokens, and by prompt and output tokens together. {error}",
        definitions=defined(("Energy", "Closure", "Static part")),
        error=tr(
            "±: one update of the energy counter (100 ms) at either end of the window, or what the power readings say otherwise if that is more."
        ),
    )
    return table(tr("Energy by role"), header, rows, {0, len(header) - 1}, caption) if rows else None


def _role_rows(name: str, energy: Energy, tokens: TokenEnergy) -> Iterable[list[str]]:
    work = {
        Role.PREFILL: (tokens.prefill_per_prompt, None, None),
        Role.DECODE: (None, tokens.decode_per_output, None),
        Role.COMBINED: (None, None, tokens.combined_per_token),
    }
    if len(energy.roles) > 1:
        for role in energy.roles:
            gpus = [gpu for gpu in energy.gpus if gpu.role is role]
            yield _energy_row(
                tr("{run}, {role}", run=name, role=tr(ROLES[role])),
                gpus,
                energy.window_s,
                energy.idle_j([role]),
                work[role],
            )
    if energy.serving:
        whole_ = (None, tokens.per_output, tokens.per_token)
        yield _energy_row(
            tr("{run}, recorded", run=name) if energy.astray else tr("{run}, all", run=name),
            energy.serving,
            energy.window_s,
            energy.idle_j(energy.roles),
            whole_,
        )


def _energy_row(
    name: str, gpus: Sequence[GpuEnergy], seconds: float, static: float | None, per_token: Sequence[float | None]
) -> list[str]:
    total = total_of([gpu.energy_j for gpu in gpus])
    power = None if total is None or seconds <= 0 else total / seconds / len(gpus)
    share = _error_share(gpus, total)
    return [
        name,
        str(len(gpus)),
        DASH if total is None else f"{with_error(total, share * total)} J",
        _with_unit(power, "W"),
        f"{number(static)} J ({percent(static / total)})" if total and static is not None else DASH,
        *("" if joules is None and total is not None else _per_token(joules, share) for joules in per_token),
        *_closures(gpus),
        joined(sorted({tr(_METHODS[gpu.method]) if gpu.method else DASH for gpu in gpus})),
    ]


def _error_share(gpus: Sequence[GpuEnergy], total: float | None) -> float:
    """The error of the boards' energy together, as a share of it; NaN if it is unknown."""
    errors = [gpu.error_j for gpu in gpus]
    if not total or None in errors:
        return math.nan
    return math.hypot(*(error for error in errors if error is not None)) / total


def _per_token(joules: float | None, share: float) -> str:
    return DASH if joules is None else with_error(joules, share * joules)


def _closures(gpus: Sequence[GpuEnergy]) -> list[str]:
    """Of the boards together, by instantaneous power and by the boards' averages."""
    counter = total_of([gpu.counter_j for gpu in gpus])
    integrals = total_of([gpu.integral_j for gpu in gpus]), total_of([gpu.average_j for gpu in gpus])
    found = [closure(integral, counter) for integral in integrals]
    return [DASH if share is None else f"{share * 100:+z.1f}%" for share in found]


def boards(group: Group) -> Table | None:
    """Every board that serves; None if no run has power."""
    header = [
        "",
        tr("Board"),
        tr("Role"),
        tr("Mean"),
        tr("Peak"),
        tr("Idle"),
        tr("Counter"),
        tr("Instant"),
        tr("Average"),
        tr("Slowed"),
        tr("Checks"),
    ]
    rows = [
        _board_row(result.name, gpu)
        for result in group.results
        if result.energy is not None
        for gpu in result.energy.serving
    ]
    caption = tr(
        "Counter: joules by the board's energy counter. Instant, average: joules by the integral of either power reading, and its closure. Slowed: throttling seen, as a share of samples. Checks: whether the readings are plausible; if not, no energy is given."
    )
    return table(tr("Energy by GPU"), header, rows, {0, 1, 2, 9, 10}, caption) if rows else None


def _board_row(name: str, gpu: GpuEnergy) -> list[str]:
    return [
        tr("{run}, GPU {index}", run=name, index=gpu.index),
        gpu.name or DASH,
        tr(ROLES[gpu.role]) if gpu.role else DASH,
        _with_unit(gpu.mean_w, "W"),
        _with_unit(gpu.peak_w, "W"),
        _with_unit(gpu.idle_w, "W"),
        _with_unit(gpu.counter_j, "J"),
        *(
            f"{_with_unit(joules, 'J')} ({share})"
            for joules, share in zip((gpu.integral_j, gpu.average_j), _closures([gpu]), strict=True)
        ),
        joined(f"{tr(reason)} {percent(share)}" for reason, share in gpu.throttled.items()) or tr("no"),
        joined(tr(_FAULTS[fault.check]) for fault in gpu.faults) or tr("passed"),
    ]


def _with_unit(value: float | None, unit: str) -> str:
    return DASH if value is None else f"{number(value)} {unit}"
