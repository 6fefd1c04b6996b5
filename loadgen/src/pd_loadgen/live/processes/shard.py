"""One process's part of a run: the whole of it, or every n-th request of a schedule that others share."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import gevent
from gevent.event import Event
from gevent.hub import get_hub

from pd_contracts.descriptors import allow_many_connections
from pd_contracts.records import RequestRecord
from pd_loadgen.client import access
from pd_loadgen.client.access import Access
from pd_loadgen.client.address import parse_url
from pd_loadgen.client.backends import BACKENDS
from pd_loadgen.live.processes.messages import Job, Report, Tally, places
from pd_loadgen.live.sending import loop_probe
from pd_loadgen.live.sending.recorder import Recorder
from pd_loadgen.live.sending.sender import Sender, no_collection
from pd_loadgen.verdict.client_health import KERNEL, PROCESS
from pd_loadgen.verdict.lag_histogram import LagHistogram
from pd_loadgen.workload import plan
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.plan import Plan, PlanError
from pd_loadgen.workload.schedule import shard


def access_of(options: Options) -> Access:
    """The headers and the TLS context of this process's requests.

    Raises:
        AccessError: if the key or the certificates cannot be read.
    """
    secure = parse_url(options.url).secure
    return Access(
        access.headers(options.headers, options.api_key_file),
        access.context(options.ca_file, insecure=options.insecure) if secure else None,
    )


class StoppedError(Exception):
    """The run was stopped before its window opened."""


def planned(job: Job, stopping: Event | None = None) -> Plan:
    """The whole plan of a job's options, made in a thread so that this process stays responsive.

    Raises:
        PlanError, AccessError: if the options make no load here.
        StoppedError: if `stopping` is set before the plan is made; the thread that makes it is left to finish.
    """
    headers = access.headers(job.options.headers, job.options.api_key_file)
    making = get_hub().threadpool.spawn(_attempt, job.options, job.model, headers)
    gevent.wait([making, *([stopping] if stopping is not None else [])], count=1)
    if not making.ready():
        raise StoppedError
    made: Plan | PlanError = making.get()
    if isinstance(made, PlanError):
        raise made
    return made


def _attempt(options: Options, model: str, headers: Mapping[str, str]) -> Plan | PlanError:
    try:
        return plan.make(options, model, headers)
    except PlanError as error:
        return error  # gevent prints a traceback for what is raised in its threads


class Shard:
    """Sends its part; records are written by `write`, once a second, as they come.

    Args:
        job: what, and which part of it.
        whole: the plan that all parts share.
        write: takes encoded records.
        observe: sees each record of the window.
        shift: this process's clock minus that of the records.
    """

    def __init__(
        self,
        job: Job,
        whole: Plan,
        write: Callable[[list[bytes]], None],
        observe: Callable[[RequestRecord], None],
        shift: float = 0.0,
    ) -> None:
        """Prepare; nothing is sent yet.

        Raises:
            TransportError: if the target's name has no address.
        """
        options = job.options
        self.requests = shard(whole.requests, job.index, job.count)
        self._warmups = shard(whole.warmups, job.index, job.count)
        self._paced, self._shift = whole.paced, shift
        self._quiet = ExitStack()
        self._looks = LagHistogram()
        self._places = places(options.max_concurrency, job.index, job.count)
        allow_many_connections(self._places or len(self.requests))
        self._recorder = Recorder(BACKENDS[options.endpoint], job.run_id, write, observe, shift)
        self._limit_s = options.lag_limit_ms / 1e3
        self._sender = Sender(
            parse_url(options.url),
            self._recorder.put,
            timeout=options.timeout,
            limit_s=self._limit_s,
            think_s=options.think_time,
            answer=self._recorder.answer,
            context=access_of(options).context,
        )

    @property
    def tally(self) -> Tally:
        sender, stamps = self._sender, self._sender.stamps
        return Tally(
            started=sender.started,
            ended=sender.ended,
            failed=sender.failed,
            late=sender.late,
            reads=stamps.lags.total,
            late_reads=stamps.lags.above(self._limit_s),
            looks=self._looks.total,
            late_looks=self._looks.above(self._limit_s),
            chunks=self._recorder.chunks,
            merged=self._recorder.merged,
            kernel=stamps.trusted or not sender.ended,
        )

    def warm_up(self) -> None:
        """Send the warm-ups, wait for them, and collect garbage for the last time before the window."""
        self._sender.warm_up(self._warmups)
        self._quiet.enter_context(no_collection())

    def offer(self, start: float) -> Report:
        """Send everything from `start` on, on this process's clock, and wait for the answers."""
        self._sender.stamps.begin()
        looking, cpu, began = loop_probe.start(), time.process_time(), time.monotonic()
        self._looks = looking.lags
        try:
            complete = self._sender.offer(self.requests, start, paced=self._paced, at_most=self._places)
        finally:
            looking.close()
        seconds = time.monotonic() - began
        cpu_s = time.process_time() - cpu
        self._recorder.drain()
        kernel = self._sender.stamps
        last_end = self._sender.last_end
        return Report(
            complete=complete,
            last_end=None if last_end is None else last_end - self._shift,
            dispatch=self._sender.lags,
            receive=kernel.lags.counts,
            looked=self._looks.counts,
            stamps=KERNEL if kernel.trusted else PROCESS,
            chunks=self._recorder.chunks,
            merged=self._recorder.merged,
            cpu_s=cpu_s,
            seconds=seconds,
        )

    def stop(self) -> None:
        """Send nothing more and end what is in flight as aborted."""
        self._sender.stop()

    def close(self) -> None:
        """Write everything that ended, and let connections go."""
        self._quiet.close()
        self._recorder.close()
        self._sender.close()
