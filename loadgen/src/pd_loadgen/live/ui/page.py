"""The load generator's own page inside Locust's: the start form by subject, live curves of the token latencies, the client's health.

Locust's page draws curves of its totals only, and shows all fields in one list.
"""

from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

from flask import Blueprint, Response, jsonify, request
from locust.env import Environment
from locust.runners import MasterRunner

from pd_contracts.latency import parse_goodput
from pd_contracts.records import RequestRecord
from pd_contracts.settings import choices, fields
from pd_loadgen.client.access import Access
from pd_loadgen.client.address import understand
from pd_loadgen.live.ui.latency_curves import LatencyCurves
from pd_loadgen.live.ui.simulation_looks import SimulationLooks
from pd_loadgen.live.ui.traffic_light import light
from pd_loadgen.live.user import Shell
from pd_loadgen.workload.option_groups import MAIN, by_subject
from pd_loadgen.workload.options import Options

PATH: Final = "/llm"


class View:
    """What the page shows of the present run."""

    def __init__(self) -> None:
        self.figures = LatencyCurves({})

    def begin(self, chosen: Options) -> None:
        self.figures = LatencyCurves(parse_goodput([chosen.goodput]))

    def observe(self, record: RequestRecord) -> None:
        """Count a request of the window."""
        self.figures.add(record)


def add(
    environment: Environment,
    shell: Shell,
    view: View,
    named: Callable[[], dict[str, str]],
    access: Callable[[], Access],
) -> None:
    """Put the page below `/llm`, and a bar with a link to it on Locust's own.

    Args:
        named: gives the fields that a form may set.
        access: gives headers and TLS context for the server.
    """
    web: Any = environment.web_ui  # its decorators carry no types
    app = web.app
    base = getattr(environment.parsed_options, "web_base_path", None) or ""
    page = Blueprint("llm", __name__, url_prefix=f"{base}{PATH}")

    def file(name: str, kind: str) -> Callable[[], Response]:
        def show() -> Response:
            return Response((files("pd_loadgen") / "data" / name).read_text("utf-8"), mimetype=kind)

        return show

    def form() -> Response:
        return jsonify({"host": environment.host, "groups": _groups(named())})

    looks = SimulationLooks(access)

    def figures() -> Response:
        return jsonify(
            {**_standing(environment, shell, view), "simulated": looks.told(understand(environment.host or "").url)}
        )

    views = {
        "/": file("live.html", "text/html"),
        "/charts.js": file("charts.js", "text/javascript"),
        "/locust.js": file("locust.js", "text/javascript"),
        "/fields": form,
        "/figures": figures,
    }
    for path, view_of in views.items():
        page.add_url_rule(
            path, endpoint=path.strip("/").replace(".", "_") or "page", view_func=web.auth_required_if_enabled(view_of)
        )
    app.register_blueprint(page)
    app.after_request(lambda response: _decorate(response, f"{base}/", f"{base}{PATH}/"))


def _groups(values: dict[str, str]) -> list[dict[str, Any]]:
    """The form's fields by subject; those that most runs need come first and are not folded away."""
    groups = by_subject(field for field in fields(Options) if field.name in values)
    return [
        {
            "title": "" if title == MAIN else title,
            "fields": [
                {"name": field.name, "value": values[field.name], "help": field.description, "choices": choices(field)}
                for field in found
            ],
        }
        for title, found in groups.items()
    ]


def _standing(environment: Environment, shell: Shell, view: View) -> dict[str, Any]:
    runner, run = environment.runner, shell.run
    standing: dict[str, Any] = {
        "state": runner.state if runner is not None else "",
        "workers": runner.worker_count if isinstance(runner, MasterRunner) else None,
        "host": environment.host,
        "figures": view.figures.snapshot(),
    }
    if run is None:
        return {**standing, "phase": "", "light": None}
    progress = run.progress()
    client = run.result.manifest.client if run.result is not None else None
    colour, sentence = light(run.tally, run.lag_limit_ms, client)
    return {
        **standing,
        "phase": "failed" if run.error else progress.phase,
        "error": run.error,
        "total": progress.total,
        "ended": progress.ended,
        "failed": progress.failed,
        "in_flight": progress.in_flight,
        "left_s": progress.left_s,
        "light": {"colour": colour, "sentence": sentence},
        "folder": str(run.result.path) if run.result is not None else "",
    }


_SCRIPTS: Final = (
    '<script src="{path}charts.js"></script><script src="{path}locust.js" data-base="{path}"></script></body>'
)
_BAR: Final = (
    "<style>"
    "#pd-bar{{display:flex;flex-wrap:wrap;gap:.25rem 1rem;align-items:center;padding:.45rem 1rem;background:#14532d;color:#fff;"
    "font:600 .9rem system-ui,sans-serif}}"
    "#pd-bar a{{color:#fff}}#pd-bar .simulated{{background:#fde68a;color:#1b1f1d;border-radius:.3rem;padding:.05rem .5rem}}"
    "#pd-bar .simulated[hidden]{{display:none}}"
    "#pd-charts{{--card:#fff;--line:#dfe4e1;--red:#b91c1c;--p50:#0f62a8;--p99:#c2410c;--soft:#5c6660;display:grid;gap:1rem;margin:1rem 0;"
    "grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));font:.9rem system-ui,sans-serif}}"
    "#pd-charts.dark{{--card:#121212;--line:#3a443f;--red:#f47272;--p50:#6cb2f0;--p99:#fb923c;--soft:#a9b4ae}}"
    "#pd-charts figure{{margin:0;min-width:0}}#pd-charts span{{color:var(--soft)}}"
    "#pd-charts u{{white-space:nowrap;text-decoration:none}}#pd-charts i{{display:inline-block;width:.9rem;height:3px;vertical-align:middle;margin:0 .25rem 0 .7rem}}"
    "#pd-charts svg{{display:block;width:100%;height:auto}}#pd-charts svg text{{fill:var(--soft);font-size:11px}}"
    "</style>"
    '<div id="pd-bar"><a href="{path}">LLM load: form and curves</a>'
    '<b class="simulated" hidden title="The engines only behave like vLLM: these times say nothing about a GPU.">SIMULATED</b></div>'
)


def _decorate(response: Response, index: str, path: str) -> Response:
    """Put a bar above Locust's page, which has no place for it, and what draws TTFT and TPOT on its Charts tab."""
    if request.path == index and response.mimetype == "text/html" and not response.direct_passthrough:
        page = response.get_data(as_text=True).replace("<body>", "<body>" + _BAR.format(path=path), 1)
        response.set_data(page.replace("</body>", _SCRIPTS.format(path=path), 1))
    return response
