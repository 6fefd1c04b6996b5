"""What is switched on for the window of a run: the engines' profiler, and the monitor's recording of power."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import gevent

from pd_contracts.records import Deployment
from pd_loadgen.live.processes.shard import access_of
from pd_loadgen.target import deployment, monitor, server
from pd_loadgen.target.asking import OPEN, ServerError
from pd_loadgen.workload.options import Options

# The recording goes on for some samples after the last answer, so that it covers the window.
TAIL_S: Final = 0.4


class Instruments:
    """Starts and stops what was asked for. A failure to stop becomes a note, because the requests have been measured.

    Args:
        pause: waits so many seconds, or raises if the run is stopped.
        say: called with the name of each phase.
        notes: get what the reader of the run should know.
    """

    def __init__(
        self,
        options: Options,
        run_id: str,
        *,
        pause: Callable[[float], None],
        say: Callable[[str], None],
        notes: list[str],
    ) -> None:
        self._options, self._run_id = options, run_id
        self._pause, self._say, self._notes = pause, say, notes

    @contextmanager
    def profile(self) -> Iterator[None]:
        """Have the engines profile the window; every engine that started is stopped, however the run ends."""
        options = self._options
        granted = access_of(options) if options.engine_profile else OPEN
        urls = list(options.profile_urls or (options.url,)) if options.engine_profile else []
        started: list[str] = []
        try:
            for url in urls:
                server.start_profile(url, granted)
                started.append(url)
            yield
        finally:
            for url in started:
                self._say("waiting for the profiler's trace")
                try:
                    server.stop_profile(url, granted)
                except ServerError as error:
                    self._notes.append(str(error))
            self._notes.extend(["the engines were profiled, which costs them time"] if started else [])

    @contextmanager
    def power(self, path: Path, described: Deployment) -> Iterator[None]:
        """Record power around the window, with some idle time before it; the recording ends however the run does."""
        url = self._options.monitor
        if not url:
            yield
            return
        recording = monitor.start_recording(url, self._run_id, deployment.gpu_roles(described))
        try:
            self._say("idle, for the power at rest")
            self._pause(self._options.idle)
            yield
            gevent.sleep(TAIL_S)
        finally:
            try:
                monitor.end_recording(url, recording, path)
            except ServerError as error:
                self._notes.append(str(error))
