"""The plan as a page and as Markdown, by the report's own style sheet and tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2

import pd_contracts
from pd_analysis.plots import style
from pd_planner.confidence.findings import Findings
from pd_planner.emit.plan_file import PlanFile
from pd_planner.report import tables
from pd_planner.report.charts import charts
from pd_planner.report.sentences import held_out_words
from pd_planner.search.plan import Objective

HTML: Final = "plan.html"
MARKDOWN: Final = "plan.md"


def pages(folder: Path, found: Findings, plan: PlanFile) -> dict[str, str]:
    """The page and the Markdown, by file name; figures go into `folder`."""
    question, setting = found.question, found.question.setting
    facts: Mapping[str, Any] = {
        "title": f"Plan for {setting.traffic.name}",
        "question": _question(found),
        "verdict": plan.verdict,
        "doubts": plan.doubts,
        "measurement": plan.measurement,
        "held_out": held_out_words(found),
        "profile": setting.profile.description,
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
        "themes": {"light": style.theme_css(dark=False), "dark": style.theme_css(dark=True)},
        "objective": question.objective.value,
        "lang": "en",
    }
    environment = _environment()
    return {name: environment.get_template(f"{name}.j2").render(facts) for name in (HTML, MARKDOWN)}


_WANTED: Final = {
    Objective.GPUS: "Wanted: the fewest GPUs",
    Objective.GOODPUT: "Wanted: the highest capacity",
    Objective.ENERGY: "Wanted: the least energy per output token",
}


def _question(found: Findings) -> str:
    question, setting = found.question, found.question.setting
    rate = f"{question.rate:,.3g} requests/s" if question.rate is not None else "as many requests as possible"
    gpus = "any number of GPUs" if question.gpus is None else f"at most {question.gpus} GPUs"
    cap = f", at most {question.power_cap_w:,.0f} W" if question.power_cap_w is not None else ""
    return (
        f"{rate} of {setting.traffic.name} on {gpus}{cap}, within {setting.limits.words}. {_WANTED[question.objective]}"
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
    environment.globals["tr"] = str
    environment.filters["pipe"] = _pipe
    return environment


def _pipe(text: str) -> str:
    """A text inside a Markdown table or line: no cell ends, no raw HTML, no line ends."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
