"""Locust around a run: one user that offers the whole schedule, the rows that Locust shows, and the fields of its start form.

Locust's own users, wait times and spawn rates shape nothing here: an open loop has one schedule. So there is one user, and its
one task starts the run and waits for it.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gevent
import locust.stats
import msgspec
from flask import Response, jsonify, request
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import LocalRunner

from pd_contracts import latency
from pd_contracts.records import RequestRecord
from pd_contracts.settings import SettingsError, fields
from pd_loadgen import options
from pd_loadgen.backends import BACKENDS
from pd_loadgen.folder import next_free
from pd_loadgen.live.run import Run
from pd_loadgen.live.turns import when_idle
from pd_loadgen.options import Options

log = logging.getLogger(__name__)

METHOD = "LLM"
# Rows that are logged without being requests, so that Locust's totals stay totals of requests.
TTFT, TPOT, ITL = "TTFT", "TPOT", "ITL"
ONLY_LOCAL = (
    "pd-loadgen: runs in one process for now: start Locust without --master, --worker and --processes, "
    "and give it a core of its own\n"
)
# The command's; Locust has the address as its Host field, and always makes a new folder.
_NOT_IN_FORM = frozenset({"url", "overwrite"})
_SAMPLES_A_TURN = 64


class RequestFailedError(Exception):
    """What Locust shows for a failed request."""


class LoadUser(User):
    """The one user of a run."""

    fixed_count = 1
    # Locust makes its users itself, so what they need hangs on their class; `Shell` puts it there.
    shell: ClassVar["Shell"]

    @task
    def offer(self) -> None:
        """Run the whole schedule, then end the test."""
        self.shell.offer()
        raise StopUser


class Shell:
    """Connects a Locust environment with runs: test start makes one, test stop waits until it is on disk."""

    def __init__(self, environment: Environment, read_options: Callable[[], Options], command: list[str]) -> None:
        """Listen to the environment's events."""
        self.run: Run | None = None
        self._environment, self._read_options, self._command = environment, read_options, command
        self._offered, self._path = False, ""
        # Locust rounds to whole milliseconds, which would make every TPOT of 8.34 ms an 8
        locust.stats.bucket_response_time = bucket  # type: ignore[assignment]  # a float is a key as good
        events: Any = environment.events  # Locust's hooks carry no types
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(self._on_stop)
        LoadUser.shell = self

    def offer(self) -> None:
        """Start the run and wait for it; only the first user of a test does."""
        if self.run is None or self._offered:
            return
        self._offered = True
        self.run.start()
        self.run.join()
        gevent.spawn(self._end_test)

    def _on_start(self, **_: Any) -> None:
        self._offered, self.run = False, None
        read = self._read_options()
        self._path = BACKENDS[read.endpoint].path
        self.run = Run(read, command=self._command, observe=self._observe)

    def _on_stopping(self, **_: Any) -> None:
        if self.run is not None:
            self.run.stop()

    def _on_stop(self, **_: Any) -> None:
        if self.run is not None and self._offered:
            self.run.join()
            self._report(self.run)

    def _end_test(self) -> None:
        runner, parsed = self._environment.runner, self._environment.parsed_options
        if runner is not None and parsed is not None:  # the command ends its runner itself
            (runner.quit if parsed.headless else runner.stop)()

    def _report(self, run: Run) -> None:
        """Say in Locust's log and on its page how the run went."""
        problem = run.error or (run.result.manifest.client.remedy if run.result and run.result.manifest.client else "")
        if problem and self._environment.runner is not None:
            sentence = problem if run.error else f"INVALID: {problem}"
            self._environment.runner.log_exception("local", sentence, sentence)
        if self._environment.parsed_options is not None:
            self._environment.process_exit_code = run.exit_status
            log.info("run over: %s", run.result.path if run.result else problem)

    def _observe(self, record: RequestRecord) -> None:
        """One request for Locust, with its end-to-end latency, and its token latencies in rows of their own."""
        end = record.end if record.end is not None else record.scheduled
        whole = latency.e2el(record) if record.error is None else None
        events: Any = self._environment.events
        events.request.fire(
            request_type="POST",
            name=self._path,
            response_time=1e3 * (whole if whole is not None else end - record.scheduled),
            response_length=0,
            response=None,
            exception=RequestFailedError(f"{record.error.kind}: {record.error.message}") if record.error else None,
            context={},
            start_time=time.time() - (time.monotonic() - record.scheduled),
        )
        if latency.succeeded(record):
            self._log_tokens(record)

    def _log_tokens(self, record: RequestRecord) -> None:
        entries: Any = self._environment.stats.entries
        for name, value in ((TTFT, latency.ttft(record)), (TPOT, latency.tpot(record))):
            if value is not None:
                entries[name, METHOD].log(value * 1e3, 0)
        for number, gap in enumerate(latency.itl(record), 1):
            entries[ITL, METHOD].log(gap * 1e3, 0)
            if number % _SAMPLES_A_TURN == 0:
                when_idle()


def bucket(milliseconds: float) -> float:
    """Locust's histogram keys: a tenth of a millisecond where tokens are, whole ones above a second."""
    return round(milliseconds, 1) if milliseconds < 1000 else round(milliseconds)


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
                default=options.text_of(getattr(defaults, field.name)),
                choices=options.choices_of(field),
                help=options.help_of(field).replace("%", "%%"),
            )


def attach(environment: Environment, **_: Any) -> None:
    """Listener of Locust's `init`: connect the environment with runs, and refuse at once what cannot work."""
    if not isinstance(environment.runner, LocalRunner):
        sys.stderr.write(ONLY_LOCAL)
        sys.exit(2)
    environment.host = environment.host or _load_or_exit({}, None).url
    _load_or_exit(_texts(environment), {})
    Shell(environment, lambda: _from_form(environment), sys.argv)
    if environment.web_ui is not None and environment.web_ui.app is not None:
        environment.web_ui.app.before_request(lambda: _refuse_bad_form(environment))


def _from_form(environment: Environment) -> Options:
    read = options.load(_texts(environment), {})
    # the form keeps its values from run to run, and no run may overwrite another
    return msgspec.structs.replace(read, out=str(next_free(Path(read.out)))) if read.out else read


def _refuse_bad_form(environment: Environment) -> Response | None:
    """Answer a bad start form with a sentence, which Locust's page shows, instead of starting a test that cannot run."""
    if not (request.method == "POST" and request.path.endswith("/swarm")):
        return None
    texts = {
        **_texts(environment),
        **{name: request.form[name] for name in _texts(environment) if name in request.form},
    }
    texts["url"] = request.form.get("host") or texts["url"]
    try:
        options.load(texts, {})
    except SettingsError as error:
        return jsonify({"success": False, "message": str(error), "host": environment.host})
    return None


def _texts(environment: Environment) -> dict[str, str]:
    """The options as Locust holds them: what its command line or its form gave, and its host."""
    parsed = vars(environment.parsed_options) if environment.parsed_options else {}
    names = {field.name for field in fields(Options)} - _NOT_IN_FORM
    return {**{name: str(parsed[name]) for name in names if name in parsed}, "url": environment.host or ""}


def _load_or_exit(texts: dict[str, str], source: dict[str, str] | None) -> Options:
    try:
        return options.load(texts, source)
    except SettingsError as error:
        sys.stderr.write(f"pd-loadgen: {error}\n")
        sys.exit(2)
