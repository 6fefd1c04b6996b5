"""The options of a run on Locust's command line and start form, and the way from there to a run."""

import argparse
import socket
import sys
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from flask import Response, jsonify, request
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING, LocalRunner, MasterRunner, WorkerRunner

from pd_contracts.folders import FolderError
from pd_contracts.records import RequestRecord
from pd_contracts.settings import SettingsError, choices, fields, shown
from pd_contracts.urls import without_secret
from pd_loadgen.client.access import Access, forget_secret, keep_secret
from pd_loadgen.client.address import understand
from pd_loadgen.live.processes.master import Workers
from pd_loadgen.live.processes.senders import Alone
from pd_loadgen.live.processes.shard import access_of
from pd_loadgen.live.processes.worker import Worker
from pd_loadgen.live.ui import page
from pd_loadgen.live.ui.locust_stats import Rows
from pd_loadgen.live.ui.page import View
from pd_loadgen.live.user import Shell, WorkerShell
from pd_loadgen.results import run_folder
from pd_loadgen.results.manifests import EXIT_BAD
from pd_loadgen.results.run_folder import new_path, next_free
from pd_loadgen.workload import options
from pd_loadgen.workload.option_fields import EARLIER_RUN
from pd_loadgen.workload.options import Options

# Options of the command only: Locust has its own Host field and --processes, and its runs always make a new folder.
_NOT_IN_FORM = EARLIER_RUN | {"url", "processes"}


# The server to which the page's password belongs; it is sent to no other.
_SECRET_IS_FOR: Final[WeakKeyDictionary[Environment, str]] = WeakKeyDictionary()


def listen(events: Any) -> None:
    """Connect Locust's own events, which a locustfile shares with Locust's command."""
    events.init_command_line_parser.add_listener(add_fields)
    events.init.add_listener(attach)


def add_fields(parser: argparse.ArgumentParser, **_: Any) -> None:
    """Listener of Locust's `init_command_line_parser`: the options as texts, so that the start form shows and keeps them."""
    defaults = _load_or_exit({}, None)
    for field in fields(Options):
        if field.name not in _NOT_IN_FORM:
            parser.add_argument(
                field.option,
                dest=field.name,
                default=shown(getattr(defaults, field.name)),
                choices=choices(field),
                help=options.help_of(field),
            )


def attach(environment: Environment, **_: Any) -> None:
    """Listener of Locust's `init`: connect the environment with runs, and refuse at once what cannot work."""
    if not environment.host:
        environment.host = _load_or_exit({}, None).url
        keep_secret(options.address({}).secret)
    read = _load_or_exit(_texts(environment), {})
    if not isinstance(environment.runner, WorkerRunner):
        _warn_of_folder(read, end=environment.web_ui is None)
    connect(environment, sys.argv)
    if environment.web_ui is not None and environment.web_ui.app is not None:
        _refuse_taken_port(environment.web_ui.host, environment.web_ui.port)
        environment.web_ui.app.before_request(lambda: _refuse_bad_form(environment))


def _refuse_taken_port(host: str, port: int) -> None:
    """End before Locust listens: where it cannot, it prints two tracebacks and an empty table of requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        where = f"port {port}" + (f" of {host}" if host else "")
        why = (error.strerror or str(error)).partition(" (")[0]  # Python repeats the address in brackets
        sys.stderr.write(f"pd-loadgen: {where} cannot serve the page: {why}; --web-port chooses another\n")
        sys.exit(EXIT_BAD)


def connect(environment: Environment, command: list[str], read: Options | None = None) -> Shell | None:
    """Give an environment's runner its part in runs; None for a worker, which only follows.

    Args:
        environment: with its runner made.
        command: how runs were asked for, for the manifest.
        read: the options, if not those that Locust's command or form holds.
    """
    rows, runner = Rows(environment), environment.runner
    if isinstance(runner, WorkerRunner):
        Worker(runner, rows.begin, rows.observe)
        WorkerShell()
        return None
    view = View()
    watched = environment.web_ui is not None
    workers = Workers(runner, view.observe if watched else None) if isinstance(runner, MasterRunner) else None

    def observe(record: RequestRecord) -> None:
        rows.observe(record)
        if watched:
            view.observe(record)

    def begin(options: Options) -> None:
        rows.begin(options)
        view.begin(options)

    shell = Shell(
        environment,
        lambda: read or _from_form(environment),
        command,
        begin=begin,
        senders=lambda: workers or Alone(observe),
    )
    if environment.web_ui is not None and environment.web_ui.app is not None:
        page.add(environment, shell, view, lambda: _named(environment), lambda: _access(environment))
    return shell


def _check_folder(read: Options) -> None:
    """Refuse a folder that no run could be written to; one that holds a run gets a number."""
    run_folder.check(next_free(Path(read.out)) if read.out else new_path("run"))


def _warn_of_folder(read: Options, *, end: bool) -> None:
    """Warn at the start if no run could be written; the page's form repeats it."""
    try:
        _check_folder(read)
    except FolderError as error:
        sys.stderr.write(f"pd-loadgen: {error}\n")
        if end:
            sys.exit(EXIT_BAD)


def _from_form(environment: Environment) -> Options:
    read = options.load(_texts(environment), {})
    # the form keeps its values from run to run, and no run may overwrite another
    return msgspec.structs.replace(read, out=str(next_free(Path(read.out)))) if read.out else read


def _refuse_bad_form(environment: Environment) -> Response | None:
    """Answer a form that cannot be started with a sentence, which Locust's page shows."""
    if not (request.method == "POST" and request.path.endswith("/swarm")):
        return None
    texts = {
        **_texts(environment),
        **{name: request.form[name] for name in _texts(environment) if name in request.form},
    }
    texts["url"] = request.form.get("host") or texts["url"]
    problem = ""
    runner = environment.runner
    if runner is not None and runner.state in (STATE_SPAWNING, STATE_RUNNING):
        # Locust would change the number of users, of which there is one, and say that it has started.
        problem = "a run is still going on: stop it, or wait for its end"
    elif isinstance(runner, MasterRunner) and not runner.worker_count:
        problem = "no worker is connected yet: a master sends nothing itself"
    try:
        if not problem:
            _check_folder(options.load(texts, {}))
    except (SettingsError, FolderError) as error:
        problem = str(error)
    return jsonify({"success": False, "message": problem, "host": environment.host}) if problem else None


def _texts(environment: Environment) -> dict[str, str]:
    """The options as Locust holds them: what its command line or its form gave, and its host."""
    parsed = vars(environment.parsed_options) if environment.parsed_options else {}
    names = {field.name for field in fields(Options)} - _NOT_IN_FORM
    return {
        **{name: str(parsed[name]) for name in names if name in parsed},
        "url": _host(environment),
        "processes": str(_senders(environment)),
    }


def _host(environment: Environment) -> str:
    """The server's address, which Locust shows on its page and in its reports; a password in it is stored elsewhere."""
    given, shown = environment.host or "", without_secret(environment.host or "")
    if secret := understand(given).secret:
        keep_secret(secret)
        _SECRET_IS_FOR[environment] = shown
    elif _SECRET_IS_FOR.get(environment, shown) != shown:
        forget_secret()
        del _SECRET_IS_FOR[environment]
    environment.host = shown
    return shown


def _named(environment: Environment) -> dict[str, str]:
    """The fields of the form, with what they hold."""
    texts = _texts(environment)
    return {name: text for name, text in texts.items() if name not in _NOT_IN_FORM}


def _access(environment: Environment) -> Access:
    """Headers and TLS context for the server in the form."""
    return access_of(options.load(_texts(environment), {}))


def _senders(environment: Environment) -> int:
    runner = environment.runner
    return 1 if runner is None or isinstance(runner, LocalRunner) else max(1, getattr(runner, "worker_count", 1))


def _load_or_exit(texts: dict[str, str], source: dict[str, str] | None) -> Options:
    try:
        return options.load(texts, source)
    except SettingsError as error:
        sys.stderr.write(f"pd-loadgen: {error}\n")
        sys.exit(2)
