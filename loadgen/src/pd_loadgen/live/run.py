"""One measured run, from options to a complete run folder.

A run has a greenlet of its own, so that whoever started it (Locust's user, the command) may be stopped at any moment while the run
still writes down what it has.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.event import Event

from pd_contracts.records import Deployment, Manifest, RequestRecord
from pd_loadgen import access, deployment, health, manifests, plan, server
from pd_loadgen.backends import BACKENDS
from pd_loadgen.deployment import DeploymentError
from pd_loadgen.folder import RunFolder, make_run_id, new_path
from pd_loadgen.http1 import parse_url
from pd_loadgen.live import probe
from pd_loadgen.live.recorder import Recorder
from pd_loadgen.live.sender import Sender, no_collection
from pd_loadgen.manifests import Outcome
from pd_loadgen.options import Options
from pd_loadgen.plan import Plan, PlanError
from pd_loadgen.schedule import shard
from pd_loadgen.server import ServerError
from pd_loadgen.summary import summarize

# From the decision to start until the first request may be due: the collector has run and the probe is armed by then.
LEAD_S: Final = 0.2
# The recording goes on for some samples after the last answer, so that it covers the window.
TAIL_S: Final = 0.4


class StoppedError(Exception):
    """The run was stopped before its window opened."""


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
        """What the command returns."""
        return manifests.exit_status(self.manifest, self.summary["completed"])


class Run:
    """A run; `result` or `error` (one sentence) is set once it is over.

    Args:
        options: what to do.
        command: how it was asked for, for the manifest.
        observe: sees each record of the window.
        worker: index and number of the workers that share the schedule.
    """

    def __init__(
        self,
        options: Options,
        *,
        command: Sequence[str],
        observe: Callable[[RequestRecord], None],
        worker: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare nothing yet: `start` does everything."""
        self.result: Result | None = None
        self.error = ""
        self._options, self._command, self._observe, self._worker = options, command, observe, worker
        self._run_id = make_run_id(options.label)
        self._phase, self._ends = "waiting for the server", 0.0
        self._total = 0
        self._sender: Sender | None = None
        self._stopping, self._over = Event(), Event()

    def start(self) -> None:
        """Begin."""
        gevent.spawn(self._main)

    def stop(self) -> None:
        """End the run early; what was measured is kept. Nothing happens once it is over."""
        if self._over.is_set():
            return
        self._stopping.set()
        if self._sender is not None:
            self._sender.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the run is over and on disk; True if it is."""
        return bool(self._over.wait(timeout))

    def progress(self) -> Progress:
        """Where it stands now."""
        if (sender := self._sender) is None:
            return Progress(self._phase)
        return Progress(
            self._phase,
            total=self._total,
            ended=sender.ended,
            failed=sender.failed,
            in_flight=sender.started - sender.ended,
            left_s=max(0.0, self._ends - time.monotonic()),
        )

    @property
    def exit_status(self) -> int:
        """What the command returns once the run is over."""
        if self.result is not None:
            return self.result.exit_status
        return manifests.EXIT_STOPPED if self._stopping.is_set() else manifests.EXIT_BAD

    def _main(self) -> None:
        try:
            self._execute()
        except (OSError, DeploymentError, PlanError) as error:
            # an unreachable server or monitor, a folder that cannot be written: each is one sentence for the user
            self.error = str(error)
        except StoppedError:
            self.error = "stopped before the first request"
        finally:
            self._over.set()

    def _execute(self) -> None:
        options = self._options
        served_by = deployment.read(Path(options.deployment)) if options.deployment else None
        headers = access.headers(options.headers, options.api_key_file)
        probe_path = BACKENDS[options.endpoint].ready_path
        server.wait_ready(options.url, options.ready_timeout, self._pause, headers=headers, ready_path=probe_path)
        model = server.choose_model(options.url, options.model, headers)
        described = deployment.describe(
            served_by,
            server.proxy_stats(options.url, headers),
            label=options.label,
            simulated=server.is_simulator(model),
        )
        self._phase = "writing the requests"
        planned = plan.make(options, model.id, headers)
        path = Path(options.out) if options.out else new_path(self._run_id)
        folder = RunFolder(path, overwrite=options.overwrite)
        manifest = manifests.begin(
            self._run_id, options, model.id, planned, deployment=described, command=self._command
        )
        folder.write_manifest(manifest)
        self._finish(folder, manifest, self._measure(folder, planned, described))

    def _measure(self, folder: RunFolder, planned: Plan, described: Deployment) -> Outcome:
        options = self._options
        notes: list[str] = []
        recorder = Recorder(folder, BACKENDS[options.endpoint], self._run_id, self._observe)
        try:
            self._sender = Sender(parse_url(options.url), options.timeout, recorder.put)
            self._phase = "warming up"
            self._sender.warm_up(planned.warmups)
            with self._power(folder.gpu, described, notes):
                outcome = self._window(self._sender, planned)
        finally:
            recorder.close()
            if self._sender is not None:
                self._sender.close()
        return Outcome(outcome.complete, outcome.window, outcome.client, notes)

    def _window(self, sender: Sender, planned: Plan) -> Outcome:
        self._pause(0)
        requests = shard(planned.requests, *self._worker)
        self._phase, self._total = "measuring", len(requests)
        with no_collection():
            looking, cpu = probe.start(), time.process_time()
            start = time.monotonic() + LEAD_S
            self._ends = start + planned.requests[-1].offset
            try:
                complete = sender.offer(requests, start, paced=planned.paced, at_most=self._options.max_concurrency)
            finally:
                looking.close()
        window = (start + planned.requests[0].offset, sender.last_end or time.monotonic())
        spent = time.process_time() - cpu
        verdict = health.verdict(
            dispatch=sender.lags,
            receive=looking.lags,
            cpu_fraction=round(spent / (time.monotonic() - start + LEAD_S), 4),
            limit_ms=self._options.lag_limit_ms,
        )
        self._phase = "writing the records"
        return Outcome(complete, window, verdict)

    @contextmanager
    def _power(self, path: Path, described: Deployment, notes: list[str]) -> Iterator[None]:
        """Record power around the window, with some idle time before it; the recording ends however the run does."""
        monitor = self._options.monitor
        if not monitor:
            yield
            return
        recording = server.start_recording(monitor, self._run_id, deployment.gpu_roles(described))
        try:
            self._phase = "idle, for the power at rest"
            self._pause(self._options.idle)
            yield
            gevent.sleep(TAIL_S)
        finally:
            try:
                server.end_recording(monitor, recording, path)
            except ServerError as error:
                notes.append(str(error))  # the requests were measured all the same

    def _finish(self, folder: RunFolder, manifest: Manifest, outcome: Outcome) -> None:
        over = manifests.end(manifest, outcome)
        summary = summarize(
            over, folder.read(), percentiles=self._options.percentiles, detailed=self._options.save_detailed
        )
        folder.write_summary(summary)
        folder.write_manifest(over)
        self.result = Result(folder.path, over, summary)
        self._phase = "done"

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError
