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
from pd_loadgen.live.ui.latency_curves import LatencyCurves
from pd_loadgen.live.ui.traffic_light import light
from pd_loadgen.live.user import Shell
from pd_loadgen.workload.option_groups import MAIN, by_subject
from pd_loadgen.workload.options import Options

PATH: Final = "/llm"


class View:
    """What the page shows of the present run."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.figures = LatencyCurves({})

    def begin(self, chosen: Options) -> None:
        """A run begins."""
        self.figures = LatencyCurves(parse_goodput([chosen.goodput]))

    def observe(self, record: RequestRecord) -> None:
        """Count a request of the window."""
        self.figures.add(record)


def add(environment: Environment, shell: Shell, view: View, named: Callable[[], dict[str, str]]) -> None:
    """Put the page below `/llm`, and a link to it on Locust's own; `named` gives the fields that a form may set."""
    web: Any = environment.web_ui  # its decorators carry no types
    app = web.app
    base = getattr(environment.parsed_options, "web_base_path", None) or ""
    page = Blueprint("llm", __name__, url_prefix=f"{base}{PATH}")

    def show() -> Response:
        return Response((files("pd_loadgen") / "data" / "live.html").read_text("utf-8"), mimetype="text/html")

    def form() -> Response:
        return jsonify({"host": environment.host, "groups": _groups(named())})

    def figures() -> Response:
        return jsonify(_standing(environment, shell, view))

    for path, view_of in (("/", show), ("/fields", form), ("/figures", figures)):
        page.add_url_rule(path, view_func=web.auth_required_if_enabled(view_of))
    app.register_blueprint(page)
    app.after_request(lambda response: _link(response, f"{base}/", f"{base}{PATH}/"))


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


_LINK: Final = (
    '<a href="{path}" style="position:fixed;left:1.25rem;bottom:1.25rem;z-index:2000;padding:.6rem 1rem;border-radius:.5rem;'
    "background:#15803d;color:#fff;font:600 .9rem system-ui,sans-serif;text-decoration:none;"
    'box-shadow:0 2px 8px rgba(0,0,0,.35)">LLM load: form and curves</a></body>'
)


def _link(response: Response, index: str, path: str) -> Response:
    if request.path == index and response.mimetype == "text/html" and not response.direct_passthrough:
        response.set_data(response.get_data(as_text=True).replace("</body>", _LINK.format(path=path)))
    return response
