"""The report's chapters as data: the contents for each load and each sweep, in the reader's order."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pd_analysis import plots
from pd_analysis.conclusions.advice import Conclusion, of_group
from pd_analysis.conclusions.modes import of_mode
from pd_analysis.conclusions.sweeps import of_sweep
from pd_analysis.conclusions.verdict import Pair, Verdict, difference, verdict
from pd_analysis.doubts.doubt import Doubt
from pd_analysis.numbers.comparison import OUTCOMES, Comparison, Outcome
from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.load import MODES
from pd_analysis.numbers.sweep import Sweep
from pd_analysis.plots import Drawn, palette
from pd_analysis.tables.comparison import comparison
from pd_analysis.tables.energy import boards, energy_by_role
from pd_analysis.tables.energy_by_phase import energy_by_phase
from pd_analysis.tables.measurement_checks import repeats, steady
from pd_analysis.tables.modes import mode_table
from pd_analysis.tables.performance import failures, percentiles, rates, stages
from pd_analysis.tables.rates import rate_table
from pd_analysis.tables.setup import commands, setup
from pd_analysis.tables.table import Table
from pd_analysis.words.formatting import percent
from pd_analysis.words.language import tr

PLOTS: Final = "plots"


@dataclass(frozen=True)
class Side:
    """One run in a card: its value, the length of its bar in per cent, and the CSS variable of its colour."""

    name: str
    text: str
    length: float
    colour: str


@dataclass(frozen=True)
class Card:
    """One deciding number of two runs, for the top of the page."""

    title: str
    unit: str
    outcome: str
    detail: str
    colour: str
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Section:
    """One load with all contents of its chapter.

    Attributes:
        findings, mode: findings and table of a mode that sends requests in groups. Such a load has no verdict, because its percentiles
            would mix different kinds of requests.
    """

    anchor: str
    group: Group
    doubts: list[Doubt]
    verdict: Verdict
    plots: dict[str, Drawn]
    latency: list[Table]
    energy: list[Table]
    failures: Table
    comparison: Table
    setup: Table
    commands: dict[str, str]
    conclusion: Conclusion
    checks: list[Table]
    findings: tuple[str, ...] = ()
    mode: Table | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """What decides."""
        return self.findings or tuple(pair.lead for pair in self.verdict.pairs)

    @property
    def grouped(self) -> bool:
        """True for a mode that sends requests in groups."""
        return self.group.pace in MODES


@dataclass(frozen=True)
class Swept:
    """One sweep: findings, figures, and a table per deployment."""

    anchor: str
    sweep: Sweep
    findings: tuple[str, ...]
    plots: list[Drawn]
    tables: list[Table]


def cards(pair: Pair, group: Group) -> list[Card]:
    """The comparisons of a pair, ready to be looked at; runs have the colours that they have in the group's plots."""
    colours = {result.name: palette.run_colour_name(position) for position, result in enumerate(group.results)}
    return [_card(comparison, colours) for comparison in pair.comparisons]


def section_of(number: int, group: Group, doubts: list[Doubt], target: tuple[Path, str], *, alone: bool) -> Section:
    out, lang = target
    folder = out / PLOTS if alone else out / PLOTS / str(number)
    return Section(
        anchor="" if alone else f"-{number}",
        group=group,
        doubts=doubts,
        verdict=verdict(group, doubts),
        plots={plot.name: plot for plot in plots.draw(group, folder, lang)},
        latency=_there(*(percentiles(result) for result in group.results), rates(group), stages(group)),
        energy=_there(energy_by_role(group), energy_by_phase(group), boards(group)),
        failures=failures(group),
        comparison=comparison(group),
        setup=setup(group),
        commands=commands(group),
        conclusion=of_group(group),
        checks=_there(steady(group), repeats(group)),
        findings=of_mode(group),
        mode=mode_table(group),
    )


def swept_of(number: int, sweep: Sweep, out: Path, lang: str, *, alone: bool) -> Swept:
    folder = out / PLOTS if alone else out / PLOTS / f"sweep-{number}"
    return Swept(
        anchor="" if alone else f"-{number}",
        sweep=sweep,
        findings=of_sweep(sweep),
        plots=plots.draw_sweep(sweep, folder, lang),
        tables=[rate_table(series) for series in sweep.series],
    )


def _there(*found: Table | None) -> list[Table]:
    return [table for table in found if table is not None]


def _card(comparison: Comparison, colours: Mapping[str, str]) -> Card:
    measure, winner = comparison.measure, comparison.winner
    sides = (comparison.baseline, comparison.other)
    largest = max(measure.get(result) or 0.0 for result in sides) or 1.0
    return Card(
        title=measure.title,
        unit=measure.unit,
        outcome=winner.name if winner else tr(OUTCOMES[comparison.outcome]),
        detail=_detail(comparison),
        colour=colours[winner.name] if winner else "muted",
        sides=tuple(
            Side(
                name=result.name,
                text=measure.text(result),
                length=100 * (measure.get(result) or 0.0) / largest,
                colour=colours[result.name],
            )
            for result in sides
        ),
    )


def _detail(comparison: Comparison) -> str:
    """What stands below the outcome."""
    if comparison.winner is not None:
        return difference(comparison) or tr("better")
    if comparison.bar is not None:
        return tr("must not be compared")
    if comparison.outcome is Outcome.EQUAL:
        return tr("within {small}", small=percent(comparison.measure.small))
    return tr("the difference is within the noise")
