"""The profile as a TOML file that says where it comes from, and the calibration as a page that shows every run."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import tomli_w

from pd_analysis.words.language import tr
from pd_planner.calibrate.calibration import Calibration
from pd_planner.calibrate.errors import Compared
from pd_simulator.profile import HeldOut, Profile, Spread

_DIGITS: Final = 4
_COLUMNS: Final = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "J/token")


def profile_text(calibration: Calibration, description: str, command: str) -> str:
    found = calibration.profile.provenance
    head = [
        f"# Written by `{command}`",
        f"# from {found.runs} runs with {found.requests:,} requests." if found else "",
        "# Its error on runs that it was not fitted to: [provenance.held_out]; how well its numbers are known: [spread].",
    ]
    told = msgspec.structs.replace(calibration.profile, description=description)
    return "\n".join(filter(None, head)) + "\n\n" + toml_text(told)


def toml_text(profile: Profile) -> str:
    """The profile as `load_profile` reads it."""
    plain = tomli_w.dumps(_told(msgspec.to_builtins(msgspec.structs.replace(profile, spread=None))))
    return plain + (_spread_text(profile.spread) if profile.spread else "")


def _spread_text(spread: Spread) -> str:
    """The spread as TOML with one matrix row per line, a layout that no library writes."""
    rows = "".join(f"  [{', '.join(f'{value:g}' for value in row)}],\n" for row in spread.covariance)
    names = "".join(f'  "{name}",\n' for name in spread.names)
    return f"\n[spread]\nnames = [\n{names}]\ncovariance = [\n{rows}]\n"


def _told(value: Any) -> Any:
    """The value without unknown entries, rounded to the digits that a fit gives."""
    if isinstance(value, dict):
        return {key: _told(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def page(calibration: Calibration, command: str) -> str:
    """The calibration in Markdown."""
    return "\n".join(_page(calibration, command)) + "\n"


def _page(calibration: Calibration, command: str) -> Iterator[str]:
    found = calibration.profile.provenance
    yield "# " + tr("Calibration")
    yield ""
    yield f"`{command}`"
    if found is None:
        return
    yield ""
    yield tr(
        "{runs} runs with {requests} requests, {model}, {engine}. Every run below was simulated with its own arrivals by a profile that was fitted to the other half of the rates; the profile itself is fitted to all.",
        runs=found.runs,
        requests=f"{found.requests:,}",
        model=found.model,
        engine=found.engine,
    )
    yield ""
    yield from held_out_table(found.held_out)
    yield ""
    yield from _numbers(calibration)
    yield ""
    yield tr("Every run, measured | simulated; milliseconds, and joules per output token:")
    yield ""
    yield from _runs(calibration.compared)


def held_out_table(held_out: dict[str, HeldOut]) -> Iterator[str]:
    """Median errors of the runs that the fit did not see, one line per deployment."""
    head = (tr("median error, held out"), tr("runs"), *_COLUMNS, tr("capacity"))
    yield f"| {' | '.join(head)} |"
    yield "| :--- |" + " ---: |" * (len(head) - 1)
    for label, one in held_out.items():
        errors = (one.ttft_p50, one.ttft_p99, one.tpot_p50, one.tpot_p99, one.joules_per_token, one.capacity)
        yield f"| {label} | {one.runs} | " + " | ".join("–" if e is None else f"{e:.1%}" for e in errors) + " |"


def _numbers(calibration: Calibration) -> Iterator[str]:
    yield "| " + " | ".join((tr("number"), tr("value"), tr("known to"))) + " |"
    yield "| :--- | ---: | ---: |"
    for what, fitted in calibration.steps.fits.items():
        residual = tr(
            "{role} engines: {windows} windows of 16 steps, residual {median} in the median, {most} for nine of ten",
            role=what,
            windows=f"{fitted.rows:,}",
            median=f"{fitted.median_error:.1%}",
            most=f"{fitted.p90_error:.0%}",
        )
        yield f"| *{residual}* | | |"
    spread = calibration.profile.spread
    known = dict(zip(spread.names, np.sqrt(np.diag(spread.covariance)), strict=True)) if spread else {}
    values = calibration.steps.values | calibration.estimate.as_dict()
    for name, value in sorted(values.items()):
        yield f"| {name} | {value:.4g} | {f'{known[name]:.0%}' if name in known else ''} |"


def _runs(compared: Sequence[Compared]) -> Iterator[str]:
    head = (tr("deployment"), tr("tokens"), tr("rate per GPU"), "n", *(name + " | " + tr("sim.") for name in _COLUMNS))
    yield f"| {' | '.join(head)} |"
    yield "| :--- | :--- | ---: | ---: |" + " ---: |" * (2 * len(_COLUMNS))
    for each in sorted(compared, key=lambda one: (one.run.label, one.run.sizes, one.run.per_gpu, one.run.seed)):
        run = each.run
        pairs = " | ".join(f"{_cell(m)} | {_cell(s)}" for m, s in zip(each.measured, each.simulated, strict=True))
        yield f"| {run.label} | {run.sizes} | {run.per_gpu:g} | {len(run.load):,} | {pairs} |"


def _cell(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:,.1f}" if value >= 1 else f"{value:.3f}"
