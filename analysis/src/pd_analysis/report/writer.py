"""Write the report: one self-contained HTML page, the same as Markdown, and the plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import jinja2

import pd_contracts
from pd_analysis import plots
from pd_analysis.conclusions.advice import Conclusion, of_group, of_lengths, of_sweep, rate_table
from pd_analysis.conclusions.verdict import Pair, Verdict, difference, sentence, verdict
from pd_analysis.doubts.doubt import Doubt
from pd_analysis.doubts.many_loads import overall
from pd_analysis.doubts.one_load import cases, of_cases
from pd_analysis.numbers.evaluation import Group, evaluate, grouped
from pd_analysis.numbers.measures import Comparison
from pd_analysis.numbers.sweep import Sweep, sweeps
from pd_analysis.plots import Drawn, style
from pd_analysis.records.run import Loaded
from pd_analysis.report import interactive
from pd_analysis.report.chapters import telling
from pd_analysis.tables.comparison import comparison, overview
from pd_analysis.tables.energy import boards, energy_by_role
from pd_analysis.tables.energy_by_phase import energy_by_phase
from pd_analysis.tables.measurement_checks import repeats, steady
from pd_analysis.tables.performance import failures, percentiles, rates, stages
from pd_analysis.tables.setup import commands, definitions, left_out, setup
from pd_analysis.tables.table import Table
from pd_analysis.words.formatting import joined, listed, percent
from pd_analysis.words.language import mark, speaking, tr

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"
PLOTS: Final = "plots"

# What the page's own script says.
WORDS: Final = {
    "filter": mark("Filter"),
    "percentiles": mark("Latency by percentile"),
    "time": mark("Requests along the run"),
    "rate": mark("Against the rate per GPU"),
    "goodput": mark("Goodput per GPU, req/s"),
    "attainment": mark("Requests within all limits, %"),
    "joules": mark("Energy per output token, J"),
    "all": mark("All rates"),
    "percentile": mark("Percentile"),
    "seconds": mark("Seconds since the first measured request was due"),
    "per_gpu": mark("Requests per second and GPU"),
    "broken": mark("This browser cannot unpack the chart:"),
    "simulated": mark("SIMULATED"),
    "Longest gap": mark("Longest gap"),
}


@dataclass(frozen=True)
class Written:
    """Where the report lies."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


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
    """One workload: everything that is said about its runs, in the order in which a reader needs it."""

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


@dataclass(frozen=True)
class Swept:
    """What a sweep says: findings, figures, and a table a deployment."""

    anchor: str
    sweep: Sweep
    findings: tuple[str, ...]
    plots: list[Drawn]
    tables: list[Table]


def write_report(loaded: Loaded, out: Path, title: str = "", lang: str = "en", *, every_load: bool = False) -> Written:
    """Render what was loaded (at least one run) into `out`, which is made if need be, in one of `language.LANGUAGES`.

    Of many loads only the telling ones have a chapter of their own, unless `every_load` asks for all; tables, curves and doubts are over all.
    """
    with speaking(lang):
        return _write(loaded, out, title, lang, every_load=every_load)


def _write(loaded: Loaded, out: Path, title: str, lang: str, *, every_load: bool) -> Written:
    results = evaluate(loaded.runs)
    groups = grouped(results)
    out.mkdir(parents=True, exist_ok=True)
    plots.clear(out / PLOTS)
    series = sweeps(results)
    swept = [_swept(number, each, out, lang, alone=len(series) == 1) for number, each in enumerate(series, 1)]
    chosen = groups if every_load else telling(groups)
    alone = len(groups) == 1
    found = {id(group): cases(group) for group in groups}  # a group holds frames, and so has no hash
    unread = loaded.problems if alone else ()
    sections = [
        _section(number, group, of_cases(found[id(group)], unread), (out, lang), alone=alone)
        for number, group in enumerate(chosen, 1)
    ]
    facts = {
        "title": title or default_title(groups),
        "simulated": any(group.simulated for group in groups),
        "sections": sections,
        "sweeps": swept,
        "heat": plots.draw_heat(series, out / PLOTS, lang) if series else [],
        "lengths": of_lengths(results),
        "explore": interactive.data(groups),
        "plotly": interactive.library(),
        "words": {key: tr(text) for key, text in WORDS.items()},
        "lang": lang,
        "overall": [] if alone else overall(groups, chain.from_iterable(found.values())),
        "chapters": (len(chosen), len(groups)) if len(chosen) < len(groups) else (),
        "fontless": not plots.readable(lang),
        "overview": overview(groups),
        "left_out": left_out(loaded.problems),
        "definitions": definitions(),
        "out": out,
        "version": pd_contracts.__version__,
        "themes": {"light": style.theme_css(dark=False), "dark": style.theme_css(dark=True)},
    }
    environment = _environment()
    for name in (HTML, MARKDOWN):
        (out / name).write_text(environment.get_template(f"{name}.j2").render(facts), encoding="utf-8")
    drawn = tuple(
        plot.path
        for plot in (
            *(plot for section in sections for plot in section.plots.values()),
            *(plot for each in swept for plot in each.plots),
        )
    )
    return Written(html=out / HTML, markdown=out / MARKDOWN, plots=drawn)


def default_title(groups: Sequence[Group]) -> str:
    """The title that all runs were given, else what is compared with what."""
    given = {result.run.manifest.title for group in groups for result in group.results}
    if len(given) == 1 and (title := given.pop()):
        return title
    if len(groups) == 1 and groups[0].others:
        others = listed(result.name for result in groups[0].others)
        return tr("{others} against {baseline}", others=others, baseline=groups[0].baseline.name)
    names = dict.fromkeys(result.name for group in groups for result in group.results)
    if len(names) <= 4:
        return tr("Measured: {runs}", runs=listed(names))
    return tr("{deployments} deployments under {loads} loads", deployments=len(names), loads=len(groups))


def cards(pair: Pair, group: Group) -> list[Card]:
    """The comparisons of a pair, ready to be looked at; runs have the colours that they have in the group's plots."""
    colours = {result.name: style.run_colour_name(position) for position, result in enumerate(group.results)}
    return [_card(comparison, colours) for comparison in pair.comparisons]


def _section(number: int, group: Group, doubts: list[Doubt], target: tuple[Path, str], *, alone: bool) -> Section:
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
    )


def _swept(number: int, sweep: Sweep, out: Path, lang: str, *, alone: bool) -> Swept:
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
        outcome=winner.name if winner else tr("equal"),
        detail=(difference(comparison) or tr("better"))
        if winner
        else tr("within {small}", small=percent(measure.small)),
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


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pd_analysis.report"),
        autoescape=jinja2.select_autoescape(("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cards": cards, "sentence": sentence, "pipe": _pipe, "joined": joined}
    environment.globals |= {"tr": tr}
    return environment


def _pipe(text: str) -> str:
    """A text inside a Markdown table or line: no cell ends, no raw HTML, no line ends."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
