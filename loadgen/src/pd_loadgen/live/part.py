"""One process's part of a run: the whole of it, or every n-th request of a schedule that others share."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from gevent.hub import get_hub

from pd_contracts.records import RequestRecord
from pd_loadgen import access, plan
from pd_loadgen.backends import BACKENDS
from pd_loadgen.http1 import parse_url
from pd_loadgen.live import probe
from pd_loadgen.live.recorder import Recorder
from pd_loadgen.live.sender import Sender, no_collection
from pd_loadgen.options import Options
from pd_loadgen.plan import Plan, PlanError
from pd_loadgen.schedule import shard
from pd_loadgen.shares import Job, Report, Tally, places


def planned(job: Job) -> Plan:
    """The whole plan of a job's options, made beside the loop so that this process goes on answering.

    Raises:
        PlanError, AccessError: if the options make no load here.
    """
    headers = access.headers(job.options.headers, job.options.api_key_file)
    made: Plan | PlanError = get_hub().threadpool.apply(_attempt, (job.options, job.model, headers))
    if isinstance(made, PlanError):
        raise made
    return made


def _attempt(options: Options, model: str, headers: Mapping[str, str]) -> Plan | PlanError:
    try:
        return plan.make(options, model, headers)
    except PlanError as error:
        return error  # gevent prints a traceback for what is raised in its threads


class Part:
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
        self._places = places(options.max_concurrency, job.index, job.count)
        self._recorder = Recorder(BACKENDS[options.endpoint], job.run_id, write, observe, shift)
        self._sender = Sender(parse_url(options.url), options.timeout, self._recorder.put)

    @property
    def tally(self) -> Tally:
        """How far it is."""
        return Tally(started=self._sender.started, ended=self._sender.ended, failed=self._sender.failed)

    def warm_up(self) -> None:
        """Send the warm-ups, wait for them, and collect garbage for the last time before the window."""
        self._sender.warm_up(self._warmups)
        self._quiet.enter_context(no_collection())

    def offer(self, start: float) -> Report:
        """Send everything from `start` on, on this process's clock, and wait for the answers."""
        looking, cpu, began = probe.start(), time.process_time(), time.monotonic()
        try:
            complete = self._sender.offer(self.requests, start, paced=self._paced, at_most=self._places)
        finally:
            looking.close()
        last_end = self._sender.last_end
        return Report(
            complete=complete,
            last_end=None if last_end is None else last_end - self._shift,
            dispatch=self._sender.lags,
            receive=looking.lags,
            cpu_s=time.process_time() - cpu,
            seconds=time.monotonic() - began,
        )

    def stop(self) -> None:
        """Send nothing more and end what is in flight as aborted."""
        self._sender.stop()

    def close(self) -> None:
        """Write everything that ended, and let connections go."""
        self._quiet.close()
        self._recorder.close()
        self._sender.close()
