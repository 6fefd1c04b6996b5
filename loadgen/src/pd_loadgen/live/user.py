"""Locust around a run: the one user, and what connects a Locust test with a run.

Locust's own users, wait times and spawn rates shape nothing here: an open loop has one schedule. So there is one user, and its
one task starts the run and waits for it. With workers, the master starts the run, and each worker sends its part of the schedule.
"""

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import gevent
from gevent.event import Event
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import LocalRunner

from pd_loadgen.live.processes.senders import Senders
from pd_loadgen.live.run import Run
from pd_loadgen.workload.options import Options

log = logging.getLogger(__name__)


class Offers(Protocol):
    """What the user's task does; it returns when the user is to end."""

    def offer(self) -> None: ...


class LoadUser(User):
    """The one user of a run."""

    fixed_count = 1
    # Locust makes its users itself, so what they need hangs on their class.
    shell: ClassVar[Offers]

    @task
    def offer(self) -> None:
        """Run the whole schedule, then end the test."""
        self.shell.offer()
        raise StopUser


class WorkerShell:
    """A worker's user: it stands for the part that the worker sends, and stays until the master ends the test."""

    def __init__(self) -> None:
        LoadUser.shell = self

    def offer(self) -> None:
        Event().wait()


class Shell:
    """Connects a Locust environment with runs: test start makes one, test stop waits until it is on disk."""

    def __init__(
        self,
        environment: Environment,
        read_options: Callable[[], Options],
        command: list[str],
        *,
        begin: Callable[[Options], None],
        senders: Callable[[], Senders],
    ) -> None:
        """Listen to the environment's events. `begin` is called for each run, `senders` gives its senders."""
        self.run: Run | None = None
        self._environment, self._read_options, self._command = environment, read_options, command
        self._begin, self._senders = begin, senders
        self._offered = False
        events: Any = environment.events  # Locust's hooks carry no types
        events.test_start.add_listener(self._on_start)
        events.spawning_complete.add_listener(self._on_spawned)
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
        self._begin(read)
        self.run = Run(read, command=self._command, senders=self._senders())

    def _on_spawned(self, **_: Any) -> None:
        # a master has no users that could begin
        if not isinstance(self._environment.runner, LocalRunner):
            gevent.spawn(self.offer)

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
            log.info("run ended: %s", run.result.path if run.result else problem)
