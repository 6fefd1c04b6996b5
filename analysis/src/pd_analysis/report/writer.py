"""Write the report: one self-contained HTML page, the same as Markdown, and the plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import jinja2

import pd_contracts
from pd_analysis import plots
from pd_analysis.conclusions.lengths import of_lengths
from pd_analysis.conclusions.short import in_short
from pd_analysis.conclusions.verdict import sentence
from pd_analysis.doubts.many_loads import overall
from pd_analysis.doubts.one_load import cases, of_cases
from pd_analysis.numbers.evaluation import Group, evaluate, grouped
from pd_analysis.numbers.sweep import sweeps
from pd_analysis.plots import palette
from pd_analysis.records.run import Loaded
from pd_analysis.report import HTML, MARKDOWN, interactive
from pd_analysis.report.chapters import with_chapter
from pd_analysis.report.filters import pipe, unbroken
from pd_analysis.report.sections import PLOTS, cards, section_of, swept_of
from pd_analysis.tables.comparison import overview
from pd_analysis.tables.setup import definitions, left_out
from pd_analysis.words.formatting import joined, listed, sentence_case
from pd_analysis.words.language import in_language, mark, tr

# What the page's own script says.
WORDS: Final = {
    "filter": mark("Filter"),
    "percentiles": mark("Latency by percentile"),
    "time": mark("Requests along the run"),
    "along": mark("Against: {axis}"),
    "goodput": mark("Goodput per GPU, req/s"),
    "attainment": mark("Requests within all limits, %"),
    "joules": mark("Energy per output token, J"),
    "all": mark("All loads"),
    "percentile": mark("Percentile"),
    "seconds": mark("Seconds since the first measured request was due"),
    "broken": mark("This browser cannot unpack the chart:"),
    "simulated": mark("SIMULATED"),
    "hint": mark("swipe for more →"),
    "Longest gap": mark("Longest gap"),
}


MANY: Final = 4  # names fit into a title


@dataclass(frozen=True)
class Written:
    """Paths of the written report."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(loaded: Loaded, out: Path, title: str = "", lang: str = "en", *, every_load: bool = False) -> Written:
    """Render what was loaded (at least one run) into `out`, which is made if need be, in one of `language.LANGUAGES`.

    If there are many loads, only some get a chapter (`with_chapter`) unless `every_load` is set; tables, curves and doubts cover all.
    """
    with in_language(lang):
        return _write(loaded, out, title, lang, every_load=every_load)


def _write(loaded: Loaded, out: Path, title: str, lang: str, *, every_load: bool) -> Written:
    results = evaluate(loaded.runs)
    groups = grouped(results)
    out.mkdir(parents=True, exist_ok=True)
    plots.clear(out / PLOTS)
    series = sweeps(results)
    swept = [swept_of(number, each, out, lang, alone=len(series) == 1) for number, each in enumerate(series, 1)]
    chosen = groups if every_load else with_chapter(groups)
    alone = len(groups) == 1
    found = {id(group): cases(group) for group in groups}  # a group holds frames, and so has no hash
    unread = loaded.problems if alone else ()
    sections = [
        section_of(number, group, of_cases(found[id(group)], unread), (out, lang), alone=alone)
        for number, group in enumerate(chosen, 1)
    ]
    merged = [] if alone else overall(groups, chain.from_iterable(found.values()))
    doubtful = merged or [doubt for section in sections for doubt in section.doubts]
    facts = {
        "title": title or default_title(groups),
        "simulated": any(group.simulated for group in groups),
        "short": in_short(
            [(each.sweep, each.findings) for each in swept], [(each.group, each.told) for each in sections], doubtful
        ),
        "sections": sections,
        "sweeps": swept,
        "heat": plots.draw_heat(series, out / PLOTS, lang) if series else [],
        "lengths": of_lengths(results),
        "explore": interactive.data(groups),
        "alone": alone,
        "overall": merged,
        "chapters": (len(chosen), len(groups)) if len(chosen) < len(groups) else (),
        "overview": overview(groups),
        "left_out": left_out(loaded.problems),
        "out": out,
        **_always(lang),
    }
    environment = _environment()
    for name in (HTML, MARKDOWN):
        (out / name).write_text(environment.get_template(f"{name}.j2").render(facts), encoding="utf-8")
    in_sections = (plot for section in sections for plot in section.plots.values())
    in_sweeps = (plot for each in swept for plot in each.plots)
    return Written(
        html=out / HTML, markdown=out / MARKDOWN, plots=tuple(plot.path for plot in (*in_sections, *in_sweeps))
    )


def _always(lang: str) -> dict[str, object]:
    """What every report in a language has, whatever was measured."""
    return {
        "lang": lang,
        "words": {key: tr(text) for key, text in WORDS.items()},
        "fontless": not plots.readable(lang),
        "plotly": interactive.library(),
        "definitions": definitions(),
        "version": pd_contracts.__version__,
        "themes": {"light": palette.theme_css(dark=False), "dark": palette.theme_css(dark=True)},
    }


def default_title(groups: Sequence[Group]) -> str:
    """The title that all runs were given, else what is compared with what."""
    given = {result.run.manifest.title for group in groups for result in group.results}
    if len(given) == 1 and (title := given.pop()):
        return title
    if len(groups) == 1 and (others := groups[0].others):
        names = [result.name for result in others]
        told = listed(names) if len(names) <= MANY else tr("{count} deployments", count=len(names))
        return tr("{others} against {baseline}", others=told, baseline=groups[0].baseline.name)
    every = dict.fromkeys(result.name for group in groups for result in group.results)
    if len(every) <= MANY:
        return tr("Measured: {runs}", runs=listed(every))
    return tr("{deployments} deployments under {loads} loads", deployments=len(every), loads=len(groups))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pd_analysis.report"),
        autoescape=jinja2.select_autoescape(("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cards": cards,
        "sentence": sentence,
        "pipe": pipe,
        "heading": sentence_case,
        "joined": joined,
        "unbroken": unbroken,
    }
    environment.globals |= {"tr": tr, "run_colour": palette.run_colour_name}
    return environment
