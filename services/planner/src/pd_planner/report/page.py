"""The plan as a page and as Markdown, by the report's own style sheet and tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2

import pd_contracts
from pd_analysis.plots import palette
from pd_analysis.report.filters import pipe, unbroken
from pd_analysis.words.formatting import sentence_case
from pd_analysis.words.language import current_language, mark, tr
from pd_planner.confidence.findings import Findings
from pd_planner.emit.plan_file import PlanFile
from pd_planner.report import tables
from pd_planner.report.charts import charts
from pd_planner.report.sentences import doubts, held_out_words, verdict_sentences
from pd_planner.search.question import Objective

HTML: Final = "plan.html"
MARKDOWN: Final = "plan.md"


def pages(folder: Path, found: Findings, plan: PlanFile) -> dict[str, str]:
    """The page and the Markdown, by file name; figures go into `folder`."""
    question, setting = found.question, found.question.setting
    facts: Mapping[str, Any] = {
        "title": tr("Plan for {traffic}", traffic=setting.traffic.name),
        "question": sentence_case(_question(found)),
        "verdict": verdict_sentences(found),
        "doubts": doubts(found, plan.measurement),
        "measurement": plan.measurement,
        "held_out": held_out_words(found),
        "profile": tr(setting.profile.description),
        "profile_hash": plan.profile_hash,
        "command": plan.command,
        "created": plan.created,
        "charts": charts(found, folder),
        "tables": [
            tables.choices(found),
            tables.power(found),
            *([tables.front(found)] if found.has_front else []),
            *([tables.flips(found)] if found.flips else []),
            *([tables.rates(found.curves)] if found.curves else []),
        ],
        "version": pd_contracts.__version__,
        "themes": {"light": palette.theme_css(dark=False), "dark": palette.theme_css(dark=True)},
        "objective": question.objective.value,
        "lang": current_language(),
    }
    environment = _environment()
    return {name: environment.get_template(f"{name}.j2").render(facts) for name in (HTML, MARKDOWN)}


_WANTED: Final = {
    Objective.GPUS: mark("Wanted: the fewest GPUs"),
    Objective.GOODPUT: mark("Wanted: the highest capacity"),
    Objective.ENERGY: mark("Wanted: the least energy per output token"),
}


def _question(found: Findings) -> str:
    question, setting = found.question, found.question.setting
    rate = (
        tr("{rate} requests/s", rate=f"{question.rate:,.3g}")
        if question.rate is not None
        else tr("as many requests as possible")
    )
    gpus = tr("any number of GPUs") if question.gpus is None else tr("at most {gpus} GPUs", gpus=question.gpus)
    if question.power_cap_w is not None:
        gpus = tr("{gpus}, at most {watts} W", gpus=gpus, watts=f"{question.power_cap_w:,.0f}")
    return tr(
        "{rate} of {traffic} on {gpus}, within {limits}. {wanted}.",
        rate=rate,
        traffic=setting.traffic.name,
        gpus=gpus,
        limits=setting.limits.words,
        wanted=tr(_WANTED[question.objective]),
    )


def _environment() -> jinja2.Environment:
    """Own templates first, then the report's, whose style sheet and tables are used."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("pd_planner", "report/templates"),
                jinja2.PackageLoader("pd_analysis", "report/templates"),
            ]
        ),
        autoescape=jinja2.select_autoescape(("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["tr"] = tr
    environment.filters |= {"pipe": pipe, "unbroken": unbroken}
    return environment
