"""The table of joules by phase and by request; `energy` has those of roles and boards."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from pd_analysis.energy.attribution import PhaseEnergy, RoleEnergy
from pd_analysis.numbers.evaluation import ROLES, Group, Result
from pd_analysis.records.columns import Floats
from pd_analysis.tables.table import Table, table
from pd_analysis.words.formatting import DASH, number, percent, whole
from pd_analysis.words.formulas import defined
from pd_analysis.words.language import mark, tr
from pd_contracts.names import Role

_DEFINED: Final = ("J per computed prompt token", "Dynamic part", "Joules of a request", "Joules without a request")
_HEADER: Final = (
    *("", mark("Energy"), mark("Static"), mark("Dynamic"), mark("Tokens"), mark("J / token"), mark("Requests")),
    *(mark("Failed, warm-up"), mark("No request"), mark("J / request, p50"), "p99", mark("Split")),
)


def energy_by_phase(group: Group) -> Table | None:
    """Energy of prefill, decode and single requests; None if no run has power."""
    rows = [row for result in group.results for row in _rows(result)]
    known = (*_DEFINED, "Phases of combined GPUs") if any(_fitted(result) for result in group.results) else _DEFINED
    header = [tr(head) if head else "" for head in _HEADER]
    caption = defined(known)
    return table(tr("Energy by phase and request"), header, rows, {0, len(header) - 1}, caption) if rows else None


def _fitted(result: Result) -> bool:
    return any(role.r2 is not None for role in result.attribution)


def _rows(result: Result) -> Iterable[list[str]]:
    for role in result.attribution:
        yield from _role_rows(result.name, role)
    shares = [phase.requests_j for role in result.attribution for phase in role.phases]
    if len(shares) > 1:
        yield _whole_row(result, np.sum(shares, axis=0))


def _role_rows(name: str, role: RoleEnergy) -> Iterable[list[str]]:
    parts = [_joules(role.energy_j), *_split(role)]
    whole_name = tr("{run}, {role}", run=name, role=tr(ROLES[role.role]))
    if len(role.phases) == 1:
        (phase,) = role.phases
        kind = tr("by GPU") if role.role is not Role.COMBINED else tr("phases cannot be told apart")
        yield [whole_name, *parts, *_phase_cells(role, phase, _joules(role.residual_j)), kind]
        return
    yield [whole_name, *parts, *[""] * 4, _joules(role.residual_j), "", "", ""]
    for phase in role.phases:
        kind = tr("fitted, R² {r2}", r2=number(role.r2))
        part = tr("{run}, its {phase}", run=name, phase=tr(phase.phase))
        yield [part, _joules(phase.energy_j), "", "", *_phase_cells(role, phase, ""), kind]


def _phase_cells(role: RoleEnergy, phase: PhaseEnergy, nobody: str) -> list[str]:
    return [
        _tokens(phase),
        number(role.per_token(phase)),
        _joules(float(phase.requests_j.sum())),
        _joules(phase.others_j),
        nobody,
        *_spread(phase.requests_j),
    ]


def _tokens(phase: PhaseEnergy) -> str:
    if phase.tokens is None:
        return DASH
    prompt = mark("{count} computed") if phase.computed else mark("{count} prompt")
    kinds = {"prefill": prompt, "decode": mark("{count} output"), "both": mark("{count} both")}
    return tr(kinds[phase.phase], count=whole(round(phase.tokens)))


def _whole_row(result: Result, requests_j: Floats) -> list[str]:
    roles = result.attribution
    others = sum(phase.others_j for role in roles for phase in role.phases)
    static = [role.static_j for role in roles if role.static_j is not None]
    energy = sum(role.energy_j for role in roles)
    parts = (sum(static), energy - sum(static)) if len(static) == len(roles) else (None, None)
    return [
        tr("{run}, all", run=result.name),
        _joules(energy),
        *(_share(part, energy) for part in parts),
        *("", ""),
        _joules(float(requests_j.sum())),
        _joules(others),
        _joules(sum(role.residual_j for role in roles)),
        *_spread(requests_j),
        "",
    ]


def _split(role: RoleEnergy) -> Sequence[str]:
    return _share(role.static_j, role.energy_j), _share(role.dynamic_j, role.energy_j)


def _share(joules: float | None, total: float) -> str:
    return DASH if joules is None or not total else f"{number(joules)} J ({percent(joules / total)})"


def _spread(joules: Floats) -> list[str]:
    return [DASH if not joules.size else number(float(np.percentile(joules, each))) for each in (50, 99)]


def _joules(value: float) -> str:
    return f"{number(value)} J"
