"""One measured run, from options to a complete run folder.

A run has a greenlet of its own, so that whoever started it (Locust's user, the command) may be stopped at any moment while the run
still writes down what it has.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from pd_contracts.folders import FolderError
from pd_contracts.records import Deployment, Manifest
from pd_loadgen.client.access import INSECURE
from pd_loadgen.client.backends import BACKENDS
from pd_loadgen.live.instruments import Instruments
from pd_loadgen.live.processes import messages
from pd_loadgen.live.processes.messages import Job, Tally
from pd_loadgen.live.processes.senders import Senders
from pd_loadgen.live.processes.shard import StoppedError, access_of, planned
from pd_loadgen.results import manifests, run_folder
from pd_loadgen.results.manifests import Outcome
from pd_loadgen.results.remarks import remarks
from pd_loadgen.results.run_folder import RunFolder, make_run_id, new_path
from pd_loadgen.results.summary import summarize
from pd_loadgen.target import deployment, monitor, server
from pd_loadgen.verdict import client_health
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import Plan, PlanError, refuse_missing_files


@dataclass(frozen=True)
class Progress:
    """Where a run stands; `left_s` counts to the last scheduled send."""

    phase: str
    total: int = 0
    ended: int = 0
    failed: int = 0
    in_flight: int = 0
    left_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """A run that is over and on disk."""

    path: Path
    manifest: Manifest
    summary: dict[str, Any]

    @property
    def exit_status(self) -> int:
        return manifests.exit_status(self.manifest, self.summary["completed"])


class Run:
    """A run; `result` or `error` (one sentence) is set once it is over.

    Args:
        options: what to do.
        command: how it was asked for, for the manifest.
        senders: who sends.
    """

    def __init__(self, options: Options, *, command: Sequence[str], senders: Senders) -> None:
        self.result: Result | None = None
        self.error = ""
        self._options, self._command, self._senders = options, command, senders
        self._run_id = make_run_id(options.label)
        self._phase, self._ends = "waiting for the server", 0.0
        self._total, self._engaged, self._lost = 0, False, ""
        self._stopping, self._over = Event(), Event()

    def start(self) -> None:
        gevent.spawn(self._main)

    def stop(self) -> None:
        """End the run early; what was measured is kept. Nothing happens once it is over."""
        if self._over.is_set():
            return
        self._stopping.set()
        if self._engaged:
            self._senders.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the run is over and on disk; True if it is."""
        return bool(self._over.wait(timeout))

    def progress(self) -> Progress:
        if not self._engaged:
            return Progress(self._phase)
        tally = self.tally
        return Progress(
            self._phase,
            total=self._total,
            ended=tally.ended,
            failed=tally.failed,
            in_flight=tally.started - tally.ended,
            left_s=max(0.0, self._ends - time.monotonic()),
        )

    @property
    def tally(self) -> Tally:
        """Requests sent and ended so far, and how late the client was."""
        return self._senders.tally if self._engaged else Tally()

    @property
    def lag_limit_ms(self) -> float:
        """The highest p99 of the client's lags that is still valid, in milliseconds."""
        return self._options.lag_limit_ms

    @property
    def exit_status(self) -> int:
        """What the command returns once the run is over."""
        if self.result is not None:
            return self.result.exit_status
        if self._lost:
            return manifests.EXIT_BAD
        return manifests.EXIT_STOPPED if self._stopping.is_set() else manifests.EXIT_BAD

    def _main(self) -> None:
        try:
            self._execute()
        except (OSError, PlanError) as error:
            # an unreachable server or monitor, a folder that cannot be written: each is one sentence for the user
            self.error = str(error)
        except StoppedError:
            self.error = self._lost or "stopped before the first request"
        finally:
            self._over.set()

    def _execute(self) -> None:
        options = self._options
        path = Path(options.out) if options.out else new_path(self._run_id)
        run_folder.check(path, overwrite=options.replaces)
        refuse_missing_files(options)  # before the wait for a server that may take minutes
        granted = access_of(options)
        probe_path = BACKENDS[options.endpoint].ready_path
        server.wait_ready(options.url, options.ready_timeout, self._pause, access=granted, ready_path=probe_path)
        model = server.choose_model(options.url, options.model, granted)
        described = deployment.describe(
            server.deployment_document(options.url, granted),
            server.proxy_stats(options.url, granted),
            boards=monitor.wait_for_boards(options.monitor, options.ready_timeout, self._pause)
            if options.monitor
            else {},
            label=options.label,
            gpus=options.gpus or None,
            simulated=server.is_simulator(model),
        )
        self._phase = "writing the requests"
        job = Job(run_id=self._run_id, options=options, model=model.id)
        whole = planned(job, self._stopping)
        folder = RunFolder(path, overwrite=options.replaces)
        manifest = manifests.begin(self._run_id, options, model.id, whole, deployment=described, command=self._command)
        folder.begin(manifest)
        self._finish(folder, manifest, self._measure(folder, job, whole, described))

    def _measure(self, folder: RunFolder, job: Job, whole: Plan, described: Deployment) -> Outcome:
        notes: list[str] = [INSECURE] if self._options.insecure else []
        self._pause(0)
        self._engaged = True
        try:
            self._phase = "warming up"
            self._senders.prepare(job, whole, partial(self._keep, folder))
            instruments = Instruments(self._options, self._run_id, pause=self._pause, say=self._say, notes=notes)
            with instruments.profile(), instruments.power(folder.gpu, described):
                outcome = self._window(whole)
        finally:
            self._senders.close()
        return Outcome(outcome.complete, outcome.window, outcome.client, [*outcome.notes, *notes])

    def _keep(self, folder: RunFolder, lines: list[bytes]) -> None:
        """Write records; once that fails the run ends, because what it would go on to measure could not be kept."""
        if self._lost:
            return
        try:
            folder.append(lines)
        except FolderError as error:
            self._lost = str(error)
            # This runs in the greenlet that hands over records, which must not wait for the end.
            gevent.spawn(self.stop)

    def _window(self, whole: Plan) -> Outcome:
        self._pause(0)
        self._phase, self._total = "measuring", whole.total
        start = time.monotonic() + self._senders.lead_s
        self._ends = start + whole.requests[-1].offset
        reports = self._senders.offer(start)
        self._phase = "writing the records"
        report = messages.joined(reports)
        window = (start + whole.requests[0].offset, report.last_end or time.monotonic())
        verdict = client_health.verdict(
            dispatch=report.dispatch,
            receive=report.receive,
            looked=report.looked,
            merged=report.merged / report.chunks if report.chunks else 0.0,
            stamps=report.stamps,
            cpu_fraction=messages.cpu_fraction(reports),
            limit_ms=self._options.lag_limit_ms,
        )
        return Outcome(report.complete, window, verdict, report.notes)

    def _finish(self, folder: RunFolder, manifest: Manifest, outcome: Outcome) -> None:
        folder.release()
        records = folder.read()
        notes = [*outcome.notes, *remarks(records, ignore_eos=self._options.ignore_eos)]
        if self._lost:
            notes.append(self._incomplete())
        over = manifests.end(manifest, replace(outcome, complete=outcome.complete and not self._lost, notes=notes))
        summary = summarize(over, records, percentiles=self._options.percentiles, detailed=self._options.save_detailed)
        try:
            folder.write_manifest(over)
            folder.write_summary(summary)
        except OSError as error:
            self._lost = self._lost or str(error)
        if self._lost:
            self.error = self._incomplete()
            return
        self.result = Result(folder.path, over, summary)
        self._phase = "done"

    def _incomplete(self) -> str:
        return f"the run was ended, and its records are not complete: {self._lost}"

    def _say(self, phase: str) -> None:
        self._phase = phase

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError
