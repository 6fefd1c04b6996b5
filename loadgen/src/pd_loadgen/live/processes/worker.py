"""A worker's side of a run: sends its part when the master says so, and hands its records over every second."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
from locust.runners import WorkerRunner

from pd_contracts.boot import boot_id
from pd_contracts.records import RequestRecord
from pd_loadgen.live.processes import messages
from pd_loadgen.live.processes.messages import Job, Tally
from pd_loadgen.live.processes.shard import Shard, planned
from pd_loadgen.workload.options import Options


class Worker:
    """Does its part in whatever run the master asks for; one at a time."""

    def __init__(
        self,
        runner: WorkerRunner,
        begin: Callable[[Options], None],
        observe: Callable[[RequestRecord], None],
    ) -> None:
        """Listen to the master. `begin` is called for each run, `observe` for each of its records."""
        self._runner, self._begin, self._observe = runner, begin, observe
        self._shard: Shard | None = None
        self._run_id, self._offering, self._stopped = "", False, False
        runner.register_message(messages.CLOCK, self._on_clock)
        runner.register_message(messages.JOB, self._on_job, concurrent=True)
        runner.register_message(messages.START, self._on_start, concurrent=True)
        runner.register_message(messages.STOP, self._on_stop)

    def _on_clock(self, **_: Any) -> None:
        self._runner.send_message(messages.CLOCK, {"read": time.monotonic(), "boot": boot_id()})

    def _on_job(self, msg: Any, **_: Any) -> None:
        job = msgspec.msgpack.decode(msg.data["job"], type=Job)
        self._run_id, self._offering, self._stopped, self._shard = job.run_id, False, False, None
        self._begin(job.options)
        try:
            whole = planned(job)
            if whole.hash != msg.data["hash"]:
                self._fail("makes a different schedule from the same options: its version or its files differ")
                return
            self._shard = Shard(job, whole, self._write, self._observe, msg.data["shift"])
        except (OSError, ValueError) as error:
            self._fail(str(error))  # a file that is not on this machine, a name that it cannot resolve
            return
        self._shard.warm_up()
        if self._stopped:
            self._shard.close()
        else:
            self._say(messages.READY)

    def _on_start(self, msg: Any, **_: Any) -> None:
        shard = self._shard
        if shard is None or msg.data["run"] != self._run_id:
            return
        self._offering = True
        report = shard.offer(msg.data["start"])
        shard.close()
        self._say(messages.REPORT, report=msgspec.json.encode(report))

    def _on_stop(self, msg: Any, **_: Any) -> None:
        if msg.data["run"] != self._run_id or self._stopped:
            return
        self._stopped = True
        if self._shard is not None:
            self._shard.stop()
            if not self._offering:
                self._shard.close()

    def _write(self, lines: list[bytes]) -> None:
        tally = self._shard.tally if self._shard is not None else Tally()
        self._say(messages.RECORDS, lines=b"".join(lines), tally=msgspec.to_builtins(tally))

    def _fail(self, sentence: str) -> None:
        self._say(messages.FAILED, sentence=sentence)

    def _say(self, message: str, **data: Any) -> None:
        self._runner.send_message(message, {"run": self._run_id, **data})
