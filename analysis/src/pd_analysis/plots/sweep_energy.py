"""A sweep's figures of energy: joules per token against what was asked for, and the least energy within the limits."""

from typing import Final

from matplotlib.figure import Figure

from pd_analysis.numbers.evaluation import Result
from pd_analysis.numbers.sweep import ATTAINMENT, Get, Series, Sweep, joules
from pd_analysis.plots import palette, style
from pd_analysis.plots.sweep_axes import canvas, handles, lines, rise, short
from pd_analysis.plots.titles import best_first
from pd_analysis.words.formatting import joined, number, percent, setting
from pd_analysis.words.language import mark, tr

_WHOLE: Final = joules(lambda tokens: tokens.per_output)
_PANELS: Final[tuple[tuple[str, Get], ...]] = (
    (mark("All GPUs: J per output token"), _WHOLE),
    (mark("Prefill GPUs: J per prompt token"), joules(lambda tokens: tokens.prefill_per_prompt)),
    (mark("Decode GPUs: J per output token"), joules(lambda tokens: tokens.decode_per_output)),
)
_ROW_IN: Final = 0.34


def energy_by_role(sweep: Sweep) -> Figure | None:
    """Joules per token against what was asked for: of the whole, and of the GPUs of each phase where they are apart."""
    panels = [
        (position, title, get)
        for position, (title, get) in enumerate(_PANELS)
        if any(series.points(get) for series in sweep.series)
    ]
    if not panels or panels[0][1] != _PANELS[0][0]:
        return None
    least = [(series.name, min((y for _, y in series.points(_WHOLE)), default=None)) for series in sweep.series]
    title = tr("Least energy per output token: {runs}", runs=best_first(least, lambda value: f"{number(value)} J"))
    figure = canvas(sweep, title, tr("{requests}.", requests=short(sweep)), 2.7, headed=True)
    every = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.3})[0]
    for axes, (_, heading, get) in zip(every, panels, strict=True):
        lines(axes, sweep, get)
        rise(axes, sweep, "")
        axes.set_title(tr(heading), loc="left", size=9.5, weight="bold")
    style.key(figure, handles(sweep), headed=True)
    return figure


def energy_within_limits(sweep: Sweep) -> Figure | None:
    """For each deployment, the point with the least joules per output token among those within the limits."""
    found = [(position, series, best) for position, series in enumerate(sweep.series) if (best := _cheapest(series))]
    if not sweep.limits or not found:
        return None
    found.sort(key=lambda item: _joules(item[2]))
    limits = joined(f"{name.upper()} ≤ {limit:g} ms" for name, limit in sweep.limits.items())
    runs = best_first([(series.name, _joules(best)) for _, series, best in found], lambda value: f"{number(value)} J")
    labels = [f"{style.elided(series.name)}\n{_place(sweep, best)}" for _, series, best in found]
    figure = style.canvas(
        tr("Least energy per output token within the limits: {runs}", runs=runs),
        tr(
            "{limits} for {share} of requests. Deployments that never keep them are left out. {requests}.",
            limits=limits,
            share=percent(ATTAINMENT),
            requests=short(sweep),
        ),
        _ROW_IN * len(found) + 0.2,
        simulated=sweep.simulated,
        left=style.room_for(labels),
    )
    axes = figure.subplots()
    widest = max(_joules(best) for _, _, best in found)
    for row, (position, _, best) in enumerate(found):
        axes.barh(row, _joules(best), height=0.6, color=palette.run_colour(position), edgecolor=palette.PAPER)
        axes.text(_joules(best) + widest * 0.01, row, f"{number(_joules(best))} J", va="center", size=9, weight="bold")
    style.quiet(axes, grid="x")
    axes.set_yticks(range(len(found)), labels)
    axes.set_ylim(len(found) - 0.45, -0.55)
    axes.set_xlim(0, widest * 1.12)
    axes.set_xlabel(tr("J per output token"))
    return figure


def _cheapest(series: Series) -> Result | None:
    kept = [
        result
        for result in series.results
        if not result.unfit and (result.metrics.attainment or 0.0) >= ATTAINMENT and _WHOLE(result) is not None
    ]
    return min(kept, key=_joules, default=None)


def _joules(result: Result) -> float:
    return _WHOLE(result) or 0.0


def _place(sweep: Sweep, result: Result) -> str:
    return tr("at {place} {unit}", place=setting(sweep.axis.place(result)), unit=sweep.axis.unit)
